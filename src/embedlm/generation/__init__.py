"""Text from a language model: on this machine or from an endpoint, cached on disk."""

from embedlm.generation.cache import Cache
from embedlm.generation.endpoint import EndpointGenerator
from embedlm.generation.generator import FunctionGenerator, Generator, Sampling, resolve_generator
from embedlm.generation.local import LocalGenerator

__all__ = [
    "Cache",
    "EndpointGenerator",
    "FunctionGenerator",
    "Generator",
    "LocalGenerator",
    "Sampling",
    "resolve_generator",
]
