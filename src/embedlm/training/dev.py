"""How good a model is on held-out records while it is trained."""

from __future__ import annotations

import numpy as np

from embedlm.data import Group, Pair, Records
from embedlm.embedder import Embedder
from embedlm.errors import InputError

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


def dev_score(embedder: Embedder, records: Records) -> float:
    """Return Spearman's correlation of scored pairs, or MRR@10 of queries.

    A query's positive is ranked among the positives and negatives of all queries.
    """
    if records.kind == "pairs":
        return _spearman(embedder, [item for item in records.items if isinstance(item, Pair)])
    return _reciprocal_rank(embedder, [item for item in records.items if isinstance(item, Group)])


def _spearman(embedder: Embedder, pairs: list[Pair]) -> float:
    from embedlm.evaluation.metrics import spearman

    texts = [text for pair in pairs for text in (pair.first, pair.second)]
    vectors = embedder.encode(texts, heads=["dense"], show_progress=False)
    scores = embedder.similarity_pairwise(vectors[::2], vectors[1::2])
    return spearman(scores, [pair.score for pair in pairs])


def _reciprocal_rank(embedder: Embedder, groups: list[Group]) -> float:
    documents = list(
        dict.fromkeys(text for group in groups for text in (*group.positives, *group.negatives))
    )
    place = {text: index for index, text in enumerate(documents)}
    options = {"show_progress": False}
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
