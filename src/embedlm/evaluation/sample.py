"""What is kept of a task beside its metrics: a score for each unit, and how units are resampled.

A unit is what a task has many of: a query, a pair, a text. Its columns are what the main metric is
made of, so that intervals and tests need no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from embedlm.errors import InputError
from embedlm.evaluation.measures import (
    average_precision_rows,
    pearson_rows,
    spearman_rows,
    v_measure_rows,
)
from embedlm.evaluation.statistics import (
    Bootstrap,
    Indices,
    Statistic,
    bootstrap,
    clustered_error,
    clusters_of,
    jackknife,
    mean_of,
    standard_error,
    wilson,
)

__all__ = ["BIASED", "STATISTICS", "Sample", "Uncertainty", "clusters_for", "uncertainty"]

_SHOWN = 300
"""Characters of a text that are kept."""
_LARGEST = 0.2
"""Share of the units in one cluster, above which clusters cannot be drawn."""
_FEWEST = 20
"""Clusters that can be drawn."""


@dataclass(frozen=True)
class Sample:
    """The units of a task with what the main metric is computed from."""

    statistic: str
    """A name of `STATISTICS`."""
    unit: str
    """What a unit is: query, pair or text."""
    ids: list[str]
    texts: list[list[str]]
    """The texts of each unit, shortened."""
    columns: dict[str, Any]
    """Lists with an entry a unit; `clusters` of v_measure holds such lists, one an experiment."""
    shared: list[list[str]] | None = None
    """What units may share with each other (the relevant documents of a query); None: nothing."""

    @classmethod
    def of(
        cls,
        statistic: str,
        unit: str,
        ids: Sequence[str],
        texts: Sequence[Sequence[str]],
        columns: Mapping[str, Any],
        shared: list[list[str]] | None = None,
    ) -> Sample:
        """Return a sample in plain values."""
        short = [[text[:_SHOWN] for text in own] for own in texts]
        plain = {name: np.asarray(values).tolist() for name, values in columns.items()}
        return cls(statistic, unit, list(ids), short, plain, shared)

    @cached_property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The columns as arrays."""
        return {name: np.asarray(values) for name, values in self.columns.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Statistic:
        """Return the main metric as a statistic of index rows."""
        return STATISTICS[self.statistic](self.arrays)

    def keys(self) -> list[list[str]] | None:
        """Return what units share, if any two share something."""
        if self.shared is None:
            return None
        seen: dict[str, int] = {}
        for own in self.shared:
            for key in set(own):
                seen[key] = seen.get(key, 0) + 1
        return self.shared if any(count > 1 for count in seen.values()) else None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "statistic": self.statistic,
            "unit": self.unit,
            "ids": self.ids,
            "texts": self.texts,
            "columns": self.columns,
            "shared": self.shared,
        }

    @classmethod
    def from_dict(cls, value: Any, where: str) -> Sample:
        """Return the sample of a result file.

        Raises:
            InputError: it is not one that this version reads.
        """
        try:
            sample = cls(**value)
        except TypeError as error:
            raise InputError(f"{where}: not the units of a result: {error}") from error
        if sample.statistic not in STATISTICS:
            raise InputError(f"{where}: the statistic {sample.statistic!r} is not known")
        if not sample._holds_together():
            raise InputError(
                f"{where}: the units and their scores do not fit together; write it "
                "again with embedlm evaluate MODEL -o FILE"
            )
        return sample

    def _holds_together(self) -> bool:
        """Tell whether each unit has its texts and a number in each column that is needed."""
        count = len(self.ids)
        lists = [self.texts, *([] if self.shared is None else [self.shared])]
        if not all(isinstance(own, list) and len(own) == count for own in lists) or not count:
            return False
        try:
            needed = [np.asarray(self.columns[name]) for name in COLUMNS[self.statistic]]
        except (KeyError, TypeError, ValueError):
            return False
        kinds = "iuf" if self.statistic != "v_measure" else "iufSU"
        return all(own.dtype.kind in kinds and own.shape[-1:] == (count,) for own in needed)


Arrays = Mapping[str, npt.NDArray[Any]]


def _mean(arrays: Arrays) -> Statistic:
    return mean_of(arrays["value"])


def _spearman(arrays: Arrays) -> Statistic:
    score, gold = arrays["score"], arrays["gold"]
    return lambda index_RN: spearman_rows(score[index_RN], gold[index_RN])


def _pearson(arrays: Arrays) -> Statistic:
    score, gold = arrays["score"], arrays["gold"]
    return lambda index_RN: pearson_rows(score[index_RN], gold[index_RN])


def _average_precision(arrays: Arrays) -> Statistic:
    # Ranks order as scores do, and small integers are sorted in linear time.
    rank = rankdata(arrays["score"], method="dense").astype(np.int32)
    gold = arrays["gold"]
    return lambda index_RN: average_precision_rows(rank[index_RN], gold[index_RN])


def _v_measure(arrays: Arrays) -> Statistic:
    labels = np.unique(arrays["label"], return_inverse=True)[1]
    experiments = arrays["clusters"]

    def rows(index_RN: Indices) -> npt.NDArray[np.float64]:
        each = [v_measure_rows(labels, clusters, index_RN) for clusters in experiments]
        return np.asarray(np.mean(each, axis=0), dtype=np.float64)

    return rows


STATISTICS: dict[str, Callable[[Arrays], Statistic]] = {
    "mean": _mean,
    "spearman": _spearman,
    "pearson": _pearson,
    "average_precision": _average_precision,
    "v_measure": _v_measure,
}
"""How the main metric comes from the columns of units."""
COLUMNS = {
    "mean": ("value",),
    **dict.fromkeys(("spearman", "pearson", "average_precision"), ("score", "gold")),
    "v_measure": ("label", "clusters"),
}
"""Which columns of units each is made of."""
BIASED = frozenset({"v_measure"})
"""They rise where a unit is drawn twice, so that only the jackknife tells their error."""


@dataclass(frozen=True)
class Uncertainty:
    """How sure a score, or a difference of two scores, is."""

    low: float
    high: float
    error: float
    """The standard error; of units that share something, the clustered one."""
    method: str
    resamples: Bootstrap = field(repr=False)


def clusters_for(keys: list[list[str]] | None) -> list[int] | None:
    """Return clusters to draw whole; None where there are too few or one is too large.

    Args:
        keys: what units share.
    """
    if keys is None:
        return None
    clusters = clusters_of(keys)
    sizes = np.unique(clusters, return_counts=True)[1]
    fit = len(sizes) >= _FEWEST and sizes.max() <= _LARGEST * len(keys)
    return clusters if fit else None


def uncertainty(
    statistic: Statistic,
    count: int,
    keys: list[list[str]] | None = None,
    values: npt.NDArray[np.float64] | None = None,
    *,
    biased: bool = False,
    share: bool = True,
) -> Uncertainty:
    """Return the interval of a statistic, wide enough for units that share something.

    Where sharing makes small clusters, whole clusters are drawn. Where it joins most units into one
    (the queries of a small corpus), units are drawn and the interval is stretched by the ratio of
    the clustered standard error to the plain one.

    Args:
        statistic: of index rows.
        count: number of units.
        keys: what units share; None: nothing.
        values: a value a unit, where the statistic is their mean.
        biased: the statistic is one of `BIASED`.
        share: values lie between 0 and 1, so that where all are 0 or all are 1 their mean may
            still be another.
    """
    if biased:
        drawn = jackknife(statistic, count)
        return Uncertainty(drawn.low, drawn.high, drawn.error, "jackknife", drawn)
    clusters = clusters_for(keys)
    drawn = bootstrap(statistic, count, clusters=clusters)
    low, high, error, method = drawn.low, drawn.high, drawn.error, "BCa"
    if clusters is not None:
        method = f"BCa over {len(set(clusters))} clusters"
    elif values is not None and keys is not None:
        plain, error = standard_error(values), clustered_error(values, keys)
        stretch = error / plain if plain > 0 else 1.0
        low = drawn.estimate - stretch * (drawn.estimate - low)
        high = drawn.estimate + stretch * (high - drawn.estimate)
        method = f"BCa, stretched {stretch:.2f} times for shared documents"
    elif values is not None:
        error = standard_error(values)
    if share and values is not None and np.isin(values, (0.0, 1.0)).all() and np.ptp(values) == 0:
        low, high = wilson(float(values[0]), count)
        method = "Wilson"
    return Uncertainty(low, high, error, method, drawn)
