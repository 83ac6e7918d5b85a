"""Texts written anew by a language model before they are embedded (GenEOL)."""

from embedlm.transform.cache import Cache
from embedlm.transform.endpoint import EndpointGenerator
from embedlm.transform.geneol import transform_texts
from embedlm.transform.generator import FunctionGenerator, Generator, Sampling, resolve_generator
from embedlm.transform.local import LocalGenerator

__all__ = [
    "Cache",
    "EndpointGenerator",
    "FunctionGenerator",
    "Generator",
    "LocalGenerator",
    "Sampling",
    "resolve_generator",
    "transform_texts",
]
