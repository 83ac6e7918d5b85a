"""The built-in ways to score a pair, and the one that a caller or a model's files ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedlm.errors import RecipeError, closest
from embedlm.rerank.published import recognised
from embedlm.schema.base import validated
from embedlm.schema.rerank import YES_NO, Method
from embedlm.schema.yaml_files import read_mapping

__all__ = ["Method", "find_method", "methods"]

_JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
_ZERANK = (
    "<|im_start|>system\n{?instruction}<query>{/instruction}{query}{?instruction}</query>\n"
    "<instruction>{instruction}</instruction>{/instruction}<|im_end|>\n"
    "<|im_start|>user\n{text}" + _ASSISTANT
)
_MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\n{?instruction}instruction: {instruction}\n{/instruction}"
    "query: {query}\ndocument: {text}\nYou are a search relevance expert who evaluates how well "
    "documents match search queries. For each query-document pair, carefully analyze the semantic "
    "relationship between them, then provide your binary relevance judgment (0 for not relevant, "
    "1 for relevant).\nRelevance:" + _ASSISTANT
)
_CTXL = (
    "Check whether a given document contains information helpful to answer the query.\n"
    "<Document> {text}\n<Query> {query} ??"
)

_METHODS = {
    method.name: method
    for method in (
        Method(name="cross-encoder", kind="classifier", template=None, probability=True),
        Method(
            name="qwen3-reranker",
            template=_JUDGE
            + "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {text}"
            + _ASSISTANT
            + "<think>\n\n</think>\n\n",
            instruction="Given a web search query, retrieve relevant passages that answer the "
            "query",
            yes="yes",
            no="no",
            probability=True,
            max_length=8192,
        ),
        Method(
            name="qwen3-vl-reranker",
            template=_JUDGE
            + "<Instruct>: {instruction}<Query>:{query}\n<Document>:{text}"
            + _ASSISTANT,
            instruction="Given a search query, retrieve relevant candidates that answer the query.",
            yes="yes",
            no="no",
            probability=True,
            max_length=10_240,
        ),
        Method(name="zerank", template=_ZERANK, yes="Yes", divisor=5, probability=True, strip=True),
        Method(name="mxbai-rerank-v2", template=_MXBAI, yes="1", no="0", max_length=8192),
        Method(name="ctxl-rerank-v2", template=_CTXL, yes=0),
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
    """Return the method that was asked for, or the one that a model's name and class ask for.

    Args:
        method: a name, a .yaml file, a mapping of fields, a `Method`, or None.
        config: the model's config, of transformers.
        source: the model's folder or hub id.

    Raises:
        RecipeError: no such method, or one with an unknown field or a value that is not allowed.
        UnsupportedError: a published re-ranker that no method can express.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, Mapping):
        return validated(Method, method, str(method.get("name", "custom")))
    if method is None:
        return _METHODS[recognised(config, source)]
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
