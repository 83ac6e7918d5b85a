"""Metrics as the field computes them: Spearman for similarity, trec_eval's nDCG for retrieval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

__all__ = ["ndcg", "recall", "reciprocal_rank", "spearman"]


def spearman(scores: npt.ArrayLike, gold: npt.ArrayLike) -> float:
    """Rank correlation in -1..1; 0 where all scores are equal."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return 0.0
    return float(spearmanr(values, np.asarray(gold, dtype=np.float64)).statistic)


def ndcg(ranked: Sequence[str], relevant: Mapping[str, float], k: int = 10) -> float:
    """Return sum rel_i / log2(i + 1) over the first k, divided by the best possible."""
    gains = [relevant.get(document, 0.0) for document in ranked[:k]]
    best = sorted((gain for gain in relevant.values() if gain > 0), reverse=True)[:k]
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(best))
    found = sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
    return found / ideal if ideal else 0.0


def recall(ranked: Sequence[str], relevant: Mapping[str, float], k: int = 100) -> float:
    """Return the share of relevant documents among the first k."""
    wanted = {document for document, gain in relevant.items() if gain > 0}
    return len(wanted.intersection(ranked[:k])) / len(wanted) if wanted else 0.0


def reciprocal_rank(ranked: Sequence[str], relevant: Mapping[str, float], k: int = 10) -> float:
    """Return 1 / rank of the first relevant document among the first k, else 0."""
    for place, document in enumerate(ranked[:k], 1):
        if relevant.get(document, 0) > 0:
            return 1 / place
    return 0.0
