"""Texts written anew by a language model before they are embedded (GenEOL)."""

from embedlm.transform.geneol import transform_texts
from embedlm.transform.generator import (
    EndpointGenerator,
    Generator,
    LocalGenerator,
    resolve_generator,
)

__all__ = [
    "EndpointGenerator",
    "Generator",
    "LocalGenerator",
    "resolve_generator",
    "transform_texts",
]
