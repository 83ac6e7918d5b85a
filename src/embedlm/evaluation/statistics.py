"""How sure a score or a difference is: intervals, tests and errors, all vectorised and seeded.

A statistic is a function of index rows: `statistic(index_RN)` returns R values, those of the
units that each row names. So means, correlations and average precision are resampled alike, and a
correlation is computed anew for each resample, never averaged.

Shapes: N units (queries, pairs, texts), R resamples, C clusters of units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.special import ndtr, ndtri

from embedlm.errors import InputError

__all__ = [
    "LEVEL",
    "SEED",
    "Bootstrap",
    "bootstrap",
    "clustered_error",
    "clusters_of",
    "detectable",
    "holm",
    "jackknife",
    "mean_of",
    "sign_flip",
    "standard_error",
    "swap_test",
    "wilson",
]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Statistic = Callable[[Indices], Floats]

SEED = 42
LEVEL = 0.95
RESAMPLES = 2000
"""Enough for the ends of a 95 % interval (Efron and Tibshirani, 1993, section 14)."""
PERMUTATIONS = 10_000
EXACT = 13
"""With so many units that are not 0, or fewer, all 2^N sign patterns are counted."""
_CHUNK = 1 << 22
"""Values of an index array that are made at once."""
_LEFT_OUT = 1000
"""Groups that the jackknife leaves out, at most."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A statistic with its resamples and their interval."""

    estimate: float
    low: float
    high: float
    replicates: Floats
    """(R,)"""

    @property
    def error(self) -> float:
        """The standard deviation of the resamples."""
        return float(self.replicates.std(ddof=1))


def bootstrap(
    statistic: Statistic,
    count: int,
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Bootstrap:
    """Return the BCa interval of a statistic (Efron, JASA 1987).

    Args:
        statistic: of index rows (R, N).
        count: number of units.
        clusters: the cluster of each unit; whole clusters are drawn then. None: units are drawn.
        level: the interval's coverage.
        resamples: number of draws.
        seed: of the draws; two statistics with one seed are resampled alike.

    Raises:
        InputError: fewer than two units or clusters.
    """
    groups = None if clusters is None else _members(clusters)
    drawn = count if groups is None else len(groups)
    if drawn < 2:
        raise InputError(f"an interval needs 2 units or clusters at least, and there are {drawn}")
    estimate = float(statistic(np.arange(count)[None])[0])
    rng = np.random.default_rng(seed)
    replicates = np.concatenate(
        [
            _values(statistic, rng.integers(drawn, size=(rows, drawn)), groups)
            for rows in _row_counts(resamples, drawn)
        ]
    )
    low, high = _bca(estimate, replicates, _jackknife(statistic, drawn, groups, rng), level)
    return Bootstrap(estimate, low, high, replicates)


def jackknife(
    statistic: Statistic,
    count: int,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Bootstrap:
    """Return the normal interval with the jackknife's error (Tukey, 1958).

    For statistics that rise where a unit is drawn twice (the V-measure: copies go to one cluster),
    so that all bootstrap resamples lie above the estimate. Its replicates are normal draws.

    Args:
        statistic: of index rows (R, N).
        count: number of units.
        level: the interval's coverage.
        resamples: number of replicates.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    estimate = float(statistic(np.arange(count)[None])[0])
    left_out = _jackknife(statistic, count, None, rng)
    parts = len(left_out)
    error = math.sqrt((parts - 1) / parts * float(((left_out - left_out.mean()) ** 2).sum()))
    half = float(ndtri((1 + level) / 2)) * error
    replicates = estimate + error * rng.standard_normal(resamples)
    return Bootstrap(estimate, estimate - half, estimate + half, replicates)


def _members(clusters: Sequence[Hashable]) -> list[Indices]:
    """Return the units of each cluster, in the order in which clusters first appear."""
    found: dict[Hashable, list[int]] = {}
    for unit, cluster in enumerate(clusters):
        found.setdefault(cluster, []).append(unit)
    return [np.array(units, dtype=np.int64) for units in found.values()]


def _row_counts(rows: int, columns: int) -> Iterator[int]:
    """Yield how many rows to make at once, so that memory stays bounded."""
    most = max(1, _CHUNK // columns)
    for start in range(0, rows, most):
        yield min(most, rows - start)


def _values(statistic: Statistic, drawn_RN: Indices, groups: list[Indices] | None) -> Floats:
    if groups is None:
        return statistic(drawn_RN)
    # Draws of clusters differ in length, so each is a call of its own.
    rows = (np.concatenate([groups[g] for g in drawn]) for drawn in drawn_RN)
    return np.array([statistic(row[None])[0] for row in rows])


def _jackknife(
    statistic: Statistic, drawn: int, groups: list[Indices] | None, rng: np.random.Generator
) -> Floats:
    """Return the statistic without each unit, or without each of many random groups of equal size.

    Groups leave the acceleration of BCa as it is: their skewness falls as their number does.
    """
    everything = np.arange(drawn)
    parts = min(drawn, _LEFT_OUT)
    size = drawn // parts
    order = everything if size == 1 else rng.permutation(drawn)
    left = order[: parts * size].reshape(parts, size)
    values = []
    for start in range(0, parts, rows := max(1, _CHUNK // drawn)):
        out = left[start : start + rows]
        keep = np.ones((len(out), drawn), dtype=bool)
        np.put_along_axis(keep, out, values=False, axis=1)
        kept = np.broadcast_to(everything, keep.shape)[keep].reshape(len(out), -1)
        values.append(_values(statistic, kept, groups))
    return np.concatenate(values)


def _bca(
    estimate: float, replicates: Floats, left_out: Floats, level: float
) -> tuple[float, float]:
    """Return the ends of the bias-corrected and accelerated interval.

    Where every resample gives the estimate, so do both ends.
    """
    if np.ptp(replicates) == 0:
        return estimate, estimate
    below = (replicates < estimate).mean() + (replicates == estimate).mean() / 2
    spare = 1 / (2 * len(replicates))  # an estimate outside all resamples would be at infinity
    bias = ndtri(np.clip(below, spare, 1 - spare))
    away = left_out.mean() - left_out
    spread = (away**2).sum()
    acceleration = (away**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    ends = ndtri(np.array([(1 - level) / 2, (1 + level) / 2])) + bias
    shares = ndtr(bias + ends / (1 - acceleration * ends))
    low, high = np.quantile(replicates, np.clip(shares, 0, 1))
    return float(low), float(high)


def mean_of(values_N: npt.ArrayLike) -> Statistic:
    """Return the mean as a statistic; over draws of clusters it is the ratio of sums."""
    values = np.asarray(values_N, dtype=np.float64)
    return lambda index_RN: values[index_RN].mean(axis=1)


def wilson(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a share (JASA 1927).

    It stays open at 0 and 1, where all resamples are equal and a bootstrap sees no error at all.
    """
    z = float(ndtri((1 + level) / 2))
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return max(0.0, middle - half), min(1.0, middle + half)


# -- tests ------------------------------------------------------------------------------------


def sign_flip(
    differences_N: npt.ArrayLike, *, permutations: int = PERMUTATIONS, seed: int = SEED
) -> float:
    """Return the two-sided p of a mean difference of 0, by flipping signs (Fisher, 1935).

    p = (#{|mean(±d)| >= |mean(d)|} + 1) / (R + 1); with `EXACT` or fewer differences that are not 0
    all patterns are counted and nothing is added.
    """
    d_N = np.asarray(differences_N, dtype=np.float64)
    d_N = d_N[d_N != 0]
    if not len(d_N):
        return 1.0
    # Sums that are equal on paper may differ in their last bit.
    observed = abs(d_N.sum()) - 1e-12 * np.abs(d_N).sum()
    if len(d_N) <= EXACT:
        bits = np.arange(2 ** len(d_N))[:, None] >> np.arange(len(d_N)) & 1
        return float((np.abs((1 - 2 * bits) @ d_N) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in _row_counts(permutations, len(d_N)):
        flips = _coins(rng, rows, len(d_N))
        extreme += int((np.abs(d_N.sum() - 2 * (flips @ d_N)) >= observed).sum())
    return (extreme + 1) / (permutations + 1)


def swap_test(
    difference: Callable[[npt.NDArray[np.bool_]], Floats],
    count: int,
    *,
    permutations: int = RESAMPLES,
    seed: int = SEED,
) -> float:
    """Return the two-sided p of a difference of two systems by swapping their outputs of units.

    Args:
        difference: takes (R, N), which units are swapped, and returns R differences.
        count: number of units.
        permutations: number of random swaps.
        seed: of the swaps.
    """
    observed = abs(float(difference(np.zeros((1, count), dtype=bool))[0])) - 1e-12
    rng = np.random.default_rng(seed)
    extreme = sum(
        int((np.abs(difference(_coins(rng, rows, count) > 0)) >= observed).sum())
        for rows in _row_counts(permutations, count)
    )
    return (extreme + 1) / (permutations + 1)


def _coins(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """Return (rows, columns) of fair zeros and ones, 8 of a random byte."""
    drawn = np.frombuffer(rng.bytes(rows * (width := -(-columns // 8))), dtype=np.uint8)
    return np.unpackbits(drawn.reshape(rows, width), axis=1)[:, :columns].astype(np.float64)


def holm(p: Sequence[float]) -> list[float]:
    """Return the p values of several tests, corrected for their number (Holm, 1979)."""
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p)[order])
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(scaled, 1)
    return [float(value) for value in corrected]


# -- errors -----------------------------------------------------------------------------------


def standard_error(values_N: npt.ArrayLike) -> float:
    """Return the standard error of a mean of independent values."""
    values = np.asarray(values_N, dtype=np.float64)
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def clustered_error(values_N: npt.ArrayLike, keys: Sequence[Sequence[Hashable]]) -> float:
    """Return the standard error of a mean whose units depend on each other where they share a key.

    With one key a unit it is the clustered error sqrt(sum_c (sum_i d_i)^2 * C / (C - 1)) / n. With
    several keys a unit (a query's relevant documents), the sum runs over all pairs of units that
    share one (Cameron, Gelbach and Miller, 2011). Never below the error of independent units.

    Args:
        values_N: one value a unit.
        keys: what each unit may share with others.
    """
    values = np.asarray(values_N, dtype=np.float64)
    count = len(values)
    numbers: dict[Hashable, int] = {}
    rows, columns = [], []
    for unit, own in enumerate(keys):
        for key in own:
            rows.append(unit)
            columns.append(numbers.setdefault(key, len(numbers)))
    shape = (count, max(len(numbers), 1))
    has_NK = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)
    away = values - values.mean()
    together: csr_matrix = csr_matrix(has_NK @ has_NK.T)
    together.data[:] = 1
    together.setdiag(1)
    total = float(away @ (together @ away))
    groups = len(set(clusters_of(keys)))
    scale = groups / (groups - 1) if groups > 1 else 1.0
    alone = standard_error(values)
    return max(math.sqrt(max(total * scale, 0.0)) / count, 0.0 if math.isnan(alone) else alone)


def clusters_of(keys: Sequence[Sequence[Hashable]]) -> list[int]:
    """Return the cluster of each unit: units are in one if a chain of shared keys joins them."""
    parent = list(range(len(keys)))

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    first: dict[Hashable, int] = {}
    for unit, own in enumerate(keys):
        for key in own:
            parent[root(unit)] = root(first.setdefault(key, unit))
    return [root(unit) for unit in range(len(keys))]


def detectable(error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true difference that a two-sided test finds with this power.

    (z_{1-alpha/2} + z_power) * error, with the standard error of the difference.
    """
    return float((ndtri(1 - alpha / 2) + ndtri(power)) * error)
