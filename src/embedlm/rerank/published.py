"""Published re-rankers told by their ids and classes: which method is theirs, or why none is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from embedlm.errors import UnsupportedError

__all__ = ["check_known", "is_published", "recognised"]

_METHODS = (
    (r"qwen3-vl-reranker-\d+b", "qwen3-vl-reranker"),
    (r"qwen3-reranker-[\d.]+b", "qwen3-reranker"),
    (r"zerank-(1|1-small|2)(-reranker)?", "zerank"),
    (r"mxbai-rerank-(base|large)-v2", "mxbai-rerank-v2"),
    (r"ctxl-rerank-v2-instruct-multilingual-\d+b", "ctxl-rerank-v2"),
    (r"bge-reranker-v2-gemma", "bge-reranker-gemma"),
)
"""The name of a published model, whole, and its method."""
_LISTWISE = "reads all documents of a query in one prompt (listwise)"
_REFUSED = (
    (r"jina-reranker-v3", _LISTWISE),
    (r"kalm-reranker", "reads documents with an encoder and queries with a decoder"),
    (r"lightonai-rerank|lighton-?rerank", "is asked by a prompt that EmbedLM does not have"),
    (
        r"llama-nemotron-rerank|llama-3\.2-nv-rerankqa",
        "classifies the mean of bidirectional states",
    ),
    (r"bge-reranker-v2-minicpm", "scores by a layer of its own choice (layerwise)"),
    (r"bge-reranker-v2\.5-gemma2", "merges tokens between its layers (lightweight)"),
)
"""How the name of a published model begins, and what no method expresses of it."""
_REFUSED_CLASSES = {
    "JinaForRanking": _LISTWISE,
    "LlamaBidirectionalForSequenceClassification": _REFUSED[3][1],
    "T5Gemma2ForConditionalGeneration": _REFUSED[1][1],
}
_OWN = "Give method= (a mapping with a template) if you know how it reads a pair"


def _model_name(source: str) -> str:
    """Return the last part of a model's id in lower case, for a folder of the hub's cache too."""
    path = Path(source)
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rsplit("--", 1)[-1].lower()
    return path.name.lower()


def is_published(source: str) -> bool:
    """Tell whether a model's id is that of a published re-ranker, known or refused."""
    name = _model_name(source)
    known = any(re.fullmatch(pattern, name) for pattern, _ in _METHODS)
    return known or any(re.match(pattern, name) for pattern, _ in _REFUSED)


def check_known(config: Any, source: str) -> None:
    """Refuse a published re-ranker that no method can express.

    Raises:
        UnsupportedError: names what it does that EmbedLM cannot.
    """
    name = _model_name(source)
    classes = [str(one) for one in getattr(config, "architectures", None) or ()]
    reasons = [_REFUSED_CLASSES[one] for one in classes if one in _REFUSED_CLASSES]
    reasons += [reason for pattern, reason in _REFUSED if re.match(pattern, name)]
    if reasons:
        raise UnsupportedError(f"{source!r} {reasons[0]}, which EmbedLM cannot do")
    if any(one.endswith("ForSequenceClassification") for one in classes):
        _check_class(classes, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, config, source)
    else:
        _check_class(classes, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, config, source)


def recognised(config: Any, source: str) -> str:
    """Return the name of the method of a model's id or class.

    A causal language model whose name says nothing of re-ranking is asked for a yes or a no.

    Raises:
        UnsupportedError: a re-ranker that no method can express, or of which nothing is known.
    """
    check_known(config, source)
    name = _model_name(source)
    for pattern, method in _METHODS:
        if re.fullmatch(pattern, name):
            return method
    if any(
        str(one).endswith("ForSequenceClassification")
        for one in getattr(config, "architectures", None) or ()
    ):
        return "cross-encoder"
    if re.search("rerank|re-rank|ranker", name):
        raise UnsupportedError(
            f"the name of {source!r} says that it is a re-ranker, but none of its files says how "
            f"it reads a pair. {_OWN}"
        )
    return "yes-no"


def _check_class(classes: list[str], known: Any, config: Any, source: str) -> None:
    """Refuse a class that transformers does not have: it may read and score in its own way."""
    own = known.get(config.model_type, ())
    allowed = {own} if isinstance(own, str) else set(own)
    if classes and allowed and not allowed & set(classes):
        raise UnsupportedError(
            f"{source!r} is a {classes[0]}, which is none of transformers' own classes for "
            f"{config.model_type!r} ({', '.join(sorted(allowed))}), so how it scores a pair is not "
            f"known. {_OWN}"
        )
