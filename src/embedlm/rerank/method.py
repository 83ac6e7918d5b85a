"""How a re-ranker reads a pair: the published ways, and the way a folder's files ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedlm.errors import RecipeError, closest
from embedlm.schema.base import validated
from embedlm.schema.rerank import YES_NO, Method
from embedlm.schema.yaml_files import read_mapping

__all__ = ["Method", "find_method", "methods"]

_QWEN = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {text}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

_METHODS = {
    method.name: method
    for method in (
        Method(name="cross-encoder", kind="classifier", probability=True),
        Method(
            name="qwen3-reranker",
            template=_QWEN,
            instruction=_SEARCH,
            yes="yes",
            no="no",
            probability=True,
            max_length=8192,
        ),
        Method(name="bge-reranker-gemma", template=YES_NO, max_length=1024),
        Method(name="yes-no", template=YES_NO, no="No"),
    )
}


def methods() -> list[str]:
    """Return the names of the built-in ways to score a pair."""
    return list(_METHODS)


def find_method(
    method: str | Path | Mapping[str, Any] | Method | None, config: Any, source: str
) -> Method:
    """Return the method that was asked for, or the one that a model's config asks for.

    Args:
        method: a name, a .yaml file, a mapping of fields, a `Method`, or None.
        config: the model's config, of transformers.
        source: the model's folder or hub id.

    Raises:
        RecipeError: no such method, or one with an unknown field or a value that is not allowed.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, Mapping):
        return validated(Method, method, str(method.get("name", "custom")))
    if method is None:
        return _METHODS[_recognised(config, source)]
    name = str(method)
    if name in _METHODS:
        return _METHODS[name]
    path = Path(name)
    if path.suffix in {".yaml", ".yml", ".json"}:
        data = read_mapping(path, "re-ranker method")
        return validated(Method, {"name": path.stem, **data}, path.name)
    raise RecipeError(
        f"re-ranker method {name!r} is not known; allowed: {', '.join(_METHODS)}, or a .yaml file."
        + closest(name, methods())
    )


def _recognised(config: Any, source: str) -> str:
    """Return the name of the method that a model's classes and name point to."""
    named = f"{source} {getattr(config, '_name_or_path', '')}".lower()
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return "cross-encoder"
    if config.model_type == "qwen3" and "rerank" in named:
        return "qwen3-reranker"
    if config.model_type == "gemma" and "rerank" in named:
        return "bge-reranker-gemma"
    return "yes-no"
