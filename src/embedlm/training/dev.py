"""Scores of a model on held-out records, while it is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from embedlm.data import Group, Pair, Records, read_records
from embedlm.embedder import Embedder
from embedlm.errors import InputError
from embedlm.evaluation.measures import spearman
from embedlm.evaluation.metrics import best_documents, mean_metric, reciprocal_rank
from embedlm.schema.tuning import Stage
from embedlm.training.named_adapters import adapters_of

__all__ = ["DevSet", "dev_score", "metric_of"]

DEPTH = 10


@dataclass(frozen=True, slots=True)
class DevSet:
    """Held-out records."""

    records: Records
    is_subset: bool = False
    """Whether the file holds further records, which are not scored."""
    role: str | None = None
    """Role of the texts of scored pairs."""

    @classmethod
    def read(cls, path: Path, limit: int, role: str | None = None) -> DevSet:
        """Read at most `limit` records.

        Raises:
            InputError: the records are bare texts, without scores or positives.
        """
        records = read_records(path, limit + 1)
        metric_of(records)
        is_subset = len(records.items) > limit
        return cls(replace(records, items=records.items[:limit]), is_subset, role)

    @property
    def metric(self) -> str:
        """Name of the metric; it says so if only the first records of the file are scored."""
        name = metric_of(self.records)
        return f"{name} (first {len(self.records.items)} records)" if self.is_subset else name


def metric_of(records: Records) -> str:
    """Return the name of the metric that `dev_score` computes on these records.

    Raises:
        InputError: the records are bare texts, without scores or positives.
    """
    if records.kind == "texts":
        raise InputError(
            f"the dev set {records.name!r} holds bare texts; give scored pairs, or queries with "
            "their positives"
        )
    return "spearman" if records.kind == "pairs" else f"mrr@{DEPTH}"


def dev_score(
    embedder: Embedder,
    records: Records,
    stage: Stage | None = None,
    role: str | None = None,
) -> float:
    """Return Spearman's correlation for scored pairs, or MRR@10 for queries with positives.

    Each query ranks the positives and negatives of all queries. A stage that trains one named
    adapter is scored with that adapter. A stage that trains adapters by role embeds the first text
    of a pair as the query and the second as the document. Pairs are compared by their dense
    vectors, or by what else the recipe gives where it has none.

    Args:
        embedder: the model.
        records: scored pairs, or queries with positives.
        stage: the stage under way, whose adapters are used.
        role: role of the texts of scored pairs.
    """
    options, by_role = _options(stage)
    if records.kind == "pairs":
        options = {**options, "role": role} if role is not None and not by_role else options
        pairs = [item for item in records.items if isinstance(item, Pair)]
        return _spearman(embedder, pairs, options, by_role=by_role)
    groups = [item for item in records.items if isinstance(item, Group)]
    return _reciprocal_rank(embedder, groups, options)


def _options(stage: Stage | None) -> tuple[dict[str, Any], bool]:
    """Return the options of `encode`, and whether the two texts of a pair have roles."""
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
    if any(head.kind == "dense" for head in embedder.recipe.heads):
        options = {**options, "heads": ["dense"]}
    ways = (embedder.encode_query, embedder.encode_document) if by_role else (embedder.encode,) * 2
    first = ways[0]([pair.first for pair in pairs], **options)
    second = ways[1]([pair.second for pair in pairs], **options)
    scores = embedder.similarity_pairwise(first, second)
    return spearman(scores, [pair.score for pair in pairs])


def _reciprocal_rank(embedder: Embedder, groups: list[Group], options: dict[str, Any]) -> float:
    documents = list(
        dict.fromkeys(text for group in groups for text in (*group.positives, *group.negatives))
    )
    scores_QN = embedder.similarity(
        embedder.encode_query([group.query for group in groups], **options),
        embedder.encode_document(documents, **options),
    )
    runs = best_documents(scores_QN, [_id(text) for text in documents], DEPTH)
    gains = [{_id(text): 1.0 for text in group.positives} for group in groups]
    return mean_metric(partial(reciprocal_rank, k=DEPTH), runs, gains)


def _id(text: str) -> str:
    """Return an id that says nothing of relevance: equal scores are ordered by it."""
    return hashlib.sha256(text.encode()).hexdigest()
