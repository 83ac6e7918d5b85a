"""The project's only metrics of rankings: those of trec_eval, ties and all.

A ranking is a list of document ids, best first. Where it comes from scores, `ranking` and
`best_documents` break ties as trec_eval does. `measures` has the metrics of scores and labels.

Shapes: Q queries, N documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, closest

__all__ = [
    "average_precision",
    "best_documents",
    "hit_rate",
    "mean_metric",
    "ndcg",
    "precision",
    "ranking",
    "ranking_metric",
    "recall",
    "reciprocal_rank",
    "score_queries",
]

Gains = Mapping[str, float]
"""The gain of each judged document of a query; above 0 it is relevant."""


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


def average_precision(ranked: Sequence[str], gains: Gains, k: int = 1000) -> float:
    """Return the mean precision at each relevant document; those below k count 0 (map_cut)."""
    found, total = 0, 0.0
    for rank, document in enumerate(ranked[:k], 1):
        if gains.get(document, 0) > 0:
            found += 1
            total += found / rank
    relevant = sum(gain > 0 for gain in gains.values())
    return total / relevant if relevant else 0.0


def precision(ranked: Sequence[str], gains: Gains, k: int = 10) -> float:
    """Return the share of the first k places that hold a relevant document."""
    return sum(gains.get(document, 0) > 0 for document in ranked[:k]) / k


def hit_rate(ranked: Sequence[str], gains: Gains, k: int = 10) -> float:
    """Return 1 if a relevant document is among the first k, else 0."""
    return float(any(gains.get(document, 0) > 0 for document in ranked[:k]))


def mean_metric(
    metric: Callable[[Sequence[str], Gains], float],
    runs: Sequence[Mapping[str, float]],
    gains: Sequence[Gains],
) -> float:
    """Return the mean of a metric over queries; runs[i] and gains[i] belong to one query."""
    return float(
        np.mean([metric(ranking(run), judged) for run, judged in zip(runs, gains, strict=True)])
    )


RANKING: dict[str, Callable[..., float]] = {
    "ndcg": ndcg,
    "map": average_precision,
    "mrr": reciprocal_rank,
    "recall": recall,
    "precision": precision,
    "hit_rate": hit_rate,
}
"""The metrics of rankings, by the name before the @."""


def ranking_metric(name: str) -> Callable[[Sequence[str], Gains], float]:
    """Return the metric of a name such as ndcg@10.

    Raises:
        InputError: no such metric, or no depth.
    """
    kind, at, depth = name.partition("@")
    if kind not in RANKING or not at or not depth.isdecimal() or int(depth) < 1:
        raise InputError(
            f"{name!r} is no metric of rankings; write one of {', '.join(RANKING)} with a depth: "
            f"ndcg@10.{closest(kind, list(RANKING))}"
        )
    return partial(RANKING[kind], k=int(depth))


def score_queries(
    runs: Mapping[str, Mapping[str, float]], judged: Mapping[str, Gains], metrics: Iterable[str]
) -> dict[str, list[float]]:
    """Return each metric for each judged query, in their order; a query without a run counts 0.

    Args:
        runs: the scores of documents, by query.
        judged: the gains of documents, by query.
        metrics: names such as ndcg@10.
    """
    functions = {name: ranking_metric(name) for name in metrics}
    ranked = {query: ranking(runs.get(query, {})) for query in judged}
    return {
        name: [metric(ranked[query], gains) for query, gains in judged.items()]
        for name, metric in functions.items()
    }
