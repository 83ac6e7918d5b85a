"""Text from a language model: on this machine or from an endpoint, cached on disk."""

from embedlm.generation.asking import SeededChat, ask
from embedlm.generation.cache import Cache
from embedlm.generation.endpoint import EndpointGenerator
from embedlm.generation.generator import FunctionGenerator, Generator, Sampling
from embedlm.generation.local import LocalGenerator
from embedlm.generation.resolve import resolve_generator

__all__ = [
    "Cache",
    "EndpointGenerator",
    "FunctionGenerator",
    "Generator",
    "LocalGenerator",
    "Sampling",
    "SeededChat",
    "ask",
    "resolve_generator",
]
