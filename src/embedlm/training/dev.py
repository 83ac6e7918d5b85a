"""How good a model is on held-out records while it is trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedlm.data import Group, Pair, Records
from embedlm.embedder import Embedder
from embedlm.errors import InputError
from embedlm.schema.tuning import Stage
from embedlm.training.named_adapters import adapters_of

__all__ = ["dev_score", "metric_of"]

DEPTH = 10


def metric_of(records: Records) -> str:
    """Return the name of what is measured on such records.

    Raises:
        InputError: bare texts, which say nothing of similarity.
    """
    if records.kind == "texts":
        raise InputError(
            f"the dev set {records.name!r} holds bare texts; give scored pairs or queries with "
            "their positives"
        )
    return "spearman" if records.kind == "pairs" else f"mrr@{DEPTH}"


def dev_score(
    embedder: Embedder,
    records: Records,
    stage: Stage | None = None,
    role: str | None = None,
) -> float:
    """Return Spearman's correlation of scored pairs, or MRR@10 of queries.

    A query's positive is ranked among the positives and negatives of all queries. Where a stage
    trains an adapter by name, that is active; where it trains adapters by role, a pair's first text
    is a query and its second a document.
    """
    options, by_role = _options(stage)
    if records.kind == "pairs":
        options = {**options, "role": role} if role is not None and not by_role else options
        pairs = [item for item in records.items if isinstance(item, Pair)]
        return _spearman(embedder, pairs, options, by_role=by_role)
    groups = [item for item in records.items if isinstance(item, Group)]
    return _reciprocal_rank(embedder, groups, options)


def _options(stage: Stage | None) -> tuple[dict[str, Any], bool]:
    """Return what `encode` is called with, and whether pairs have roles."""
    options: dict[str, Any] = {"show_progress": False}
    names = [] if stage is None else adapters_of(stage)
    if stage is None or not names:
        return options, False
    if stage.train == "query_encoder" or isinstance(stage.data[0].adapter, dict):
        return options, True
    return {**options, "adapter": names[0]}, False


def _spearman(
    embedder: Embedder, pairs: list[Pair], options: dict[str, Any], *, by_role: bool
) -> float:
    from embedlm.evaluation.metrics import spearman

    options = {**options, "heads": ["dense"]}
    if by_role:
        first = embedder.encode_query([pair.first for pair in pairs], **options)
        second = embedder.encode_document([pair.second for pair in pairs], **options)
    else:
        texts = [text for pair in pairs for text in (pair.first, pair.second)]
        vectors = embedder.encode(texts, **options)
        first, second = vectors[::2], vectors[1::2]
    scores = embedder.similarity_pairwise(first, second)
    return spearman(scores, [pair.score for pair in pairs])


def _reciprocal_rank(embedder: Embedder, groups: list[Group], options: dict[str, Any]) -> float:
    documents = list(
        dict.fromkeys(text for group in groups for text in (*group.positives, *group.negatives))
    )
    place = {text: index for index, text in enumerate(documents)}
    found = embedder.similarity(
        embedder.encode_query([group.query for group in groups], **options),
        embedder.encode_document(documents, **options),
    )
    total = 0.0
    for scores, group in zip(found, groups, strict=True):
        best = max(float(scores[place[text]]) for text in group.positives)
        rank = 1 + int(np.sum(scores > best))
        total += 1 / rank if rank <= DEPTH else 0.0
    return total / len(groups)
