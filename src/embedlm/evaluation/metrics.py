"""The project's only metrics: Spearman for similarity, trec_eval's for rankings.

A ranking is a list of document ids, best first. Where it comes from scores, `ranking` and
`best_documents` break ties as trec_eval does.

Shapes: Q queries, N documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

__all__ = [
    "best_documents",
    "mean_metric",
    "ndcg",
    "ranking",
    "recall",
    "reciprocal_rank",
    "spearman",
]

Gains = Mapping[str, float]
"""The gain of each judged document of a query; above 0 it is relevant."""


def spearman(scores: npt.ArrayLike, gold: npt.ArrayLike) -> float:
    """Rank correlation in -1..1; 0 where all scores are equal."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return 0.0
    return float(spearmanr(values, np.asarray(gold, dtype=np.float64)).statistic)


def ranking(run: Mapping[str, float]) -> list[str]:
    """Order one query's documents by score, best first.

    Scores are compared in float32, and equal ones by document id, descending: both as trec_eval
    does. An order that favoured relevant documents, or the order in which documents were listed,
    would give a model with one vector for every text a good result.
    """
    ids = sorted(run, reverse=True)
    scores = np.array([run[document] for document in ids], dtype=np.float32)
    return [ids[i] for i in np.argsort(-scores, kind="stable").tolist()]


def best_documents(
    scores_QN: npt.NDArray[np.float32], ids: Sequence[str], depth: int
) -> list[dict[str, float]]:
    """Return the first `depth` documents of each query's `ranking`, with their scores."""
    by_id = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)
    sorted_QN = np.asarray(scores_QN, dtype=np.float32)[:, by_id]
    order_QK = np.argsort(-sorted_QN, axis=1, kind="stable")[:, :depth]
    return [
        {ids[by_id[i]]: float(row[i]) for i in order.tolist()}
        for row, order in zip(sorted_QN, order_QK, strict=True)
    ]


def ndcg(ranked: Sequence[str], gains: Gains, k: int = 10) -> float:
    """Return sum gain_i / log2(i + 1) over the first k, divided by the best possible.

    The linear gain of trec_eval's ndcg_cut (Järvelin and Kekäläinen, TOIS 2002).
    """
    best = sorted((gain for gain in gains.values() if gain > 0), reverse=True)[:k]
    if not best:
        return 0.0
    return _discounted([max(gains.get(id_, 0.0), 0.0) for id_ in ranked[:k]]) / _discounted(best)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))


def recall(ranked: Sequence[str], gains: Gains, k: int = 100) -> float:
    """Return the share of the relevant documents that are among the first k."""
    relevant = {document for document, gain in gains.items() if gain > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranked: Sequence[str], gains: Gains, k: int | None = 10) -> float:
    """Return 1 / rank of the first relevant document among the first k (None: all), else 0."""
    for rank, document in enumerate(ranked[:k], 1):
        if gains.get(document, 0) > 0:
            return 1 / rank
    return 0.0


def mean_metric(
    metric: Callable[[Sequence[str], Gains], float],
    runs: Sequence[Mapping[str, float]],
    gains: Sequence[Gains],
) -> float:
    """Return the mean of a metric over queries; runs[i] and gains[i] belong to one query."""
    return float(
        np.mean([metric(ranking(run), judged) for run, judged in zip(runs, gains, strict=True)])
    )
