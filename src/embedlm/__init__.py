"""Turn any language model into an embedding model: prompt it, tune it, prove it, serve it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedlm.schema.recipe import Recipe, recipes

if TYPE_CHECKING:
    from embedlm import losses
    from embedlm.adaptation import adapt
    from embedlm.embedder import Embedder
    from embedlm.encode.precision import quantize
    from embedlm.evaluation import evaluate
    from embedlm.generation.writer import Writer
    from embedlm.loader import load
    from embedlm.mining import mine, refine
    from embedlm.readout.embeddings import Embeddings
    from embedlm.readout.quantized import dequantize
    from embedlm.rerank import Reranker
    from embedlm.synthesis import synthesize
    from embedlm.training import train

__version__ = "0.1.0"
__all__ = [
    "Embedder",
    "Embeddings",
    "Recipe",
    "Reranker",
    "Writer",
    "__version__",
    "adapt",
    "dequantize",
    "evaluate",
    "load",
    "losses",
    "mine",
    "quantize",
    "recipes",
    "refine",
    "synthesize",
    "train",
]

# What needs torch (or takes long to import) is loaded when it is first asked for.
_LAZY = {
    "Embedder": "embedlm.embedder",
    "Embeddings": "embedlm.readout.embeddings",
    "load": "embedlm.loader",
    "adapt": "embedlm.adaptation",
    "evaluate": "embedlm.evaluation",
    "mine": "embedlm.mining",
    "refine": "embedlm.mining",
    "quantize": "embedlm.encode.precision",
    "dequantize": "embedlm.readout.quantized",
    "Reranker": "embedlm.rerank",
    "synthesize": "embedlm.synthesis",
    "train": "embedlm.training",
    "Writer": "embedlm.generation.writer",
}
_LAZY_MODULES = {"losses"}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return import_module(f"embedlm.{name}")
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'embedlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
