"""Several rankings of the same documents, made one.

Every method is the formula

    fused(d) = sum over runs r that hold d of  w_r * scale_r(d)

and differs only in `scale`: by rank (RRF), not at all (weighted), by the run's range (min-max), or
by its distribution (DBSF). A document that a run lacks gets 0 from it. Stores only rank; this is
the one place where runs are fused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, closest

__all__ = [
    "DEFAULT",
    "DEPTH",
    "SCALES",
    "check_method",
    "dbsf",
    "fuse",
    "min_max",
    "ordered",
    "rrf",
    "weighted",
]

Scores = npt.NDArray[np.float64]
"""A run's scores, best first."""

DEFAULT = "min_max"
"""The method where none is named: of equal weights the best on three dev sets, docs/results.md."""
DEPTH = 1000
"""Documents of a run that are fused, as in PromptReps (arXiv 2404.18424)."""
RRF_K = 60
"""Cormack, Clarke and Büttcher, SIGIR 2009."""


def rrf(scores: Scores, k: int = RRF_K) -> Scores:
    """Reciprocal rank fusion, 1 / (k + rank) with ranks from 1 (Cormack et al., SIGIR 2009).

    Qdrant counts ranks from 0: its k is this one plus 1.
    """
    return np.asarray(1.0 / (k + np.arange(1, len(scores) + 1)), dtype=np.float64)


def min_max(scores: Scores) -> Scores:
    """(s - min) / (max - min) over the run; 1 where all scores are equal.

    PromptReps (Zhuang et al., arXiv 2404.18424) fuses so, half and half.
    """
    low, high = scores[-1], scores[0]
    if high == low:
        return np.ones_like(scores)
    return np.asarray((scores - low) / (high - low), dtype=np.float64)


def dbsf(scores: Scores) -> Scores:
    """(s - (m - 3d)) / 6d, with m and d the run's mean and standard deviation (n - 1), as Qdrant.

    1/2 where all scores are equal.
    """
    deviation = float(np.std(scores, ddof=1)) if scores[0] > scores[-1] else 0.0
    if deviation == 0:
        return np.full_like(scores, 0.5)
    low = float(scores.mean()) - 3 * deviation
    return np.asarray((scores - low) / (6 * deviation), dtype=np.float64)


def weighted(scores: Scores) -> Scores:
    """The scores as they are, for runs of one scale: their weighted sum."""
    return scores


SCALES: dict[str, Callable[[Scores], Scores]] = {
    "rrf": rrf,
    "weighted": weighted,
    "min_max": min_max,
    "dbsf": dbsf,
}
"""The methods, by name."""


def check_method(name: str) -> None:
    """Refuse a method that there is not.

    Raises:
        InputError: lists those that there are.
    """
    if name not in SCALES:
        raise InputError(
            f"fusion {name!r} is not known; allowed: {', '.join(SCALES)}."
            + closest(name, list(SCALES))
        )


def ordered(run: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return ids and scores, best first; equal scores by id."""
    return sorted(run.items(), key=lambda entry: (-entry[1], entry[0]))


def fuse(
    runs: Sequence[Mapping[str, float]],
    method: str = DEFAULT,
    weights: Sequence[float] | None = None,
    *,
    depth: int = DEPTH,
    **options: Any,
) -> dict[str, float]:
    """Fuse the runs of one query into scores by document id.

    Args:
        runs: the score of each document, by id; higher is better.
        method: rrf, weighted, min_max or dbsf.
        weights: one for each run; None weighs all by 1 / runs.
        depth: only the best so many documents of each run are fused.
        **options: k of rrf.

    Raises:
        InputError: an unknown method, another number of weights than runs, NaN or infinity, or
            numbers so large that they give these.
    """
    check_method(method)
    shares = [1 / len(runs)] * len(runs) if weights is None else list(weights)
    if len(shares) != len(runs):
        raise InputError(f"{len(shares)} weights were given for {len(runs)} runs; give one each")
    numbers = [*shares, *(score for run in runs for score in run.values())]
    if not all(math.isfinite(number) for number in numbers):
        raise InputError("the weights or scores hold NaN or infinity; give finite numbers")
    fused: dict[str, float] = {}
    for run, share in zip(runs, shares, strict=True):
        best = ordered(run)[:depth]
        if not best:
            continue
        scores = np.array([score for _, score in best], dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is told below
            scaled = SCALES[method](scores, **options)
        for (document, _), value in zip(best, scaled.tolist(), strict=True):
            fused[document] = fused.get(document, 0.0) + share * value
    if not all(map(math.isfinite, fused.values())):
        raise InputError("the weights or scores are too large to be fused; give smaller numbers")
    return fused
