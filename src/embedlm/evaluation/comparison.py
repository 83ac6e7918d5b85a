"""Which of two models is better, by how much, how sure, and on which queries they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import rankdata

from embedlm.errors import InputError
from embedlm.evaluation.measures import average_precision_rows, pearson_rows
from embedlm.evaluation.probes import IDEAL
from embedlm.evaluation.results import Result
from embedlm.evaluation.sample import BIASED, Sample, clusters_for, uncertainty
from embedlm.evaluation.statistics import (
    LEVEL,
    detectable,
    holm,
    sign_flip,
    standard_error,
    swap_test,
)

__all__ = ["ALPHA", "Comparison", "Difference", "compare", "differences", "mean_difference"]

ALPHA = 1 - LEVEL
SHOWN = 5
"""Queries that are shown on each side."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How B differs from A on a task.

    A difference above 0 means that B is better, but for the metrics of `probes.IDEAL`, where the
    one closer to the ideal value is.
    """

    task: str
    metric: str
    n: int
    unit: str
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    p: float
    test: str
    p_holm: float
    detectable: float
    """The smallest true difference that this test would have found in 4 of 5 cases."""
    better: str
    """a, b, or "" where neither is by Holm's p."""
    queries: list[dict[str, Any]] = field(default_factory=list)
    """The units that differ most, with their texts and scores."""


@dataclass(frozen=True)
class Comparison:
    """Two models over all their common tasks."""

    a: str
    b: str
    tasks: list[Difference]
    mean: float
    """The mean difference over tasks."""
    mean_interval: tuple[float, float]
    """Of these tasks: it says nothing of others."""
    verdict: str
    left_out: dict[str, str] = field(default_factory=dict)
    """Tasks that are not compared, with the reason."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        tasks = {
            row.task: {k: v for k, v in asdict(row).items() if k != "task"} for row in self.tasks
        }
        return {**asdict(self), "tasks": tasks}


def compare(
    a: Sequence[Result], b: Sequence[Result], names: tuple[str, str] = ("A", "B")
) -> Comparison:
    """Compare two models on the tasks that both have results of.

    Each task has a paired permutation test, the p values are corrected by Holm, and the interval of
    the difference is BCa's over units that are drawn for both models alike.

    Args:
        a: the results of one model.
        b: those of the other.
        names: what they are called.

    Raises:
        InputError: no common task, or results of different data or metrics.
    """
    others = {result.task: result for result in b}
    common = [(one, others[one.task]) for one in a if one.task in others]
    if not common:
        raise InputError(
            f"{names[0]} and {names[1]} have no task in common: {', '.join(x.task for x in a)} "
            f"against {', '.join(others)}; evaluate both on the same suite"
        )
    both = {one.task for one, _ in common}
    left_out = {one.task: "only one of the two has it" for one in (*a, *b) if one.task not in both}
    pairs = [(one, two) for one, two in common if one.sample and two.sample]
    paired = {one.task for one, _ in pairs}
    left_out |= {task: "its units are not known" for task in both - paired}
    if not pairs:
        raise InputError(
            f"of {', '.join(sorted(both))} the units (queries, pairs, texts) are not known, so "
            "that nothing can be compared one by one; compare tasks that have intervals"
        )
    rows, replicates = differences(pairs)
    mean, interval = mean_difference(rows, replicates)
    return Comparison(*names, rows, mean, interval, _verdict(rows, names), left_out)


def differences(
    pairs: Sequence[tuple[Result, Result]],
) -> tuple[list[Difference], list[Floats]]:
    """Return how the second result of each pair differs from the first, and resamples of that.

    Holm's correction is for all pairs together, so that a family of tests is given at once.

    Args:
        pairs: two results of one task each.

    Raises:
        InputError: two results of different data or metrics.
    """
    found = [_difference(one, other) for one, other in pairs]
    corrected = holm([row["p"] for row, _ in found])
    rows = []
    for (row, _), p in zip(found, corrected, strict=True):
        sure = p <= ALPHA and row["difference"] != 0
        better = _better(row) if sure else ""
        rows.append(Difference(**row, p_holm=p, better=better))
    return rows, [drawn for _, drawn in found]


def mean_difference(
    rows: Sequence[Difference], replicates: Sequence[Floats]
) -> tuple[float, tuple[float, float]]:
    """Return the mean difference over tasks with its interval, which is of these tasks alone."""
    drawn = np.mean(replicates, axis=0)
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    return float(np.mean([row.difference for row in rows])), (float(low), float(high))


def _better(row: dict[str, Any]) -> str:
    """Return which of two models that differ is better; "" where both are as far from the ideal."""
    if (ideal := IDEAL.get(row["metric"])) is None:
        return "b" if row["difference"] > 0 else "a"
    a, b = abs(row["a"] - ideal), abs(row["b"] - ideal)
    return "" if a == b else ("b" if b < a else "a")


def _verdict(rows: Sequence[Difference], names: tuple[str, str]) -> str:
    """Return a sentence that says who is better, and of which tasks that is not known."""
    wins = {side: sum(row.better == side for row in rows) for side in ("a", "b")}
    count = f"{len(rows)} task{'s' if len(rows) > 1 else ''}"
    if not any(wins.values()):
        return f"no difference is sure on {count} (Holm's p above {ALPHA:.2f})"
    parts = [
        f"{name} is better on {wins[side]}"
        for side, name in zip(("a", "b"), names, strict=True)
        if wins[side]
    ]
    open_ = len(rows) - sum(wins.values())
    rest = f", and {open_} not decided" if open_ else ""
    return f"of {count}, {' and '.join(parts)}{rest} (Holm's p up to {ALPHA:.2f})"


def _difference(a: Result, b: Result) -> tuple[dict[str, Any], Floats]:
    """Return the fields of a difference, and its replicates."""
    one, two = _aligned(a, b)
    rows_a, rows_b = one.rows(), two.rows()
    values = None
    if one.statistic == "mean":
        values = two.arrays["value"] - one.arrays["value"]
    biased = one.statistic in BIASED
    sure = uncertainty(
        lambda index_RN: rows_b(index_RN) - rows_a(index_RN),
        len(one),
        one.keys(),
        values,
        biased=biased,
        share=False,  # a difference may be below 0, too
    )
    difference = b.score - a.score
    shift = difference - sure.resamples.estimate
    p, test = _test(one, two, sure.error)
    fields = {
        "task": a.task,
        "metric": a.metric,
        "n": len(one),
        "unit": one.unit,
        "a": a.score,
        "b": b.score,
        "difference": difference,
        "interval": (sure.low + shift, sure.high + shift),
        "p": p,
        "test": test,
        "detectable": detectable(sure.error),
        "queries": _most_different(one, two),
    }
    return fields, sure.resamples.replicates + shift


def _aligned(a: Result, b: Result) -> tuple[Sample, Sample]:
    """Return the samples of two results, which must be of the same units.

    Raises:
        InputError: they are not.
    """
    one, two = a.sample, b.sample
    if one is None or two is None or a.metric != b.metric or one.statistic != two.statistic:
        raise InputError(
            f"{a.task}: the results have different metrics ({a.metric}, {b.metric}); evaluate both "
            "models by the same suite"
        )
    same = one.ids == two.ids and one.texts == two.texts
    golds = all(one.columns.get(name) == two.columns.get(name) for name in ("gold", "label"))
    if not same or not golds:
        raise InputError(
            f"{a.task}: the results are of different data ({len(one)} and {len(two)} units); "
            "evaluate both models on the same files"
        )
    return one, two


def _test(one: Sample, two: Sample, error: float) -> tuple[float, str]:
    """Return the two-sided p of no difference, and the name of the test."""
    a, b = one.arrays, two.arrays
    if one.statistic == "mean":
        differences = b["value"] - a["value"]
        keys = one.keys()
        clusters = clusters_for(keys)
        if clusters is not None:
            numbers = np.unique(clusters, return_inverse=True)[1]
            return sign_flip(np.bincount(numbers, weights=differences)), "sign-flip of clusters"
        if keys is not None and error > standard_error(differences) > 0:
            # Flips of single queries would take those that share documents for independent ones.
            return _normal_p(float(differences.mean()), error), "clustered z"
        return sign_flip(differences), "sign-flip"
    if one.statistic in BIASED:
        estimate = float(two.rows()(np.arange(len(two))[None])[0]) - float(
            one.rows()(np.arange(len(one))[None])[0]
        )
        return _normal_p(estimate, error), "jackknife z"
    if one.statistic == "average_precision":
        return _swapped(a, b, average_precision_rows), "swap"
    return _swapped(a, b, pearson_rows), "swap"


def _normal_p(difference: float, error: float) -> float:
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * ndtr(-abs(difference) / error))


def _swapped(
    a: Mapping[str, npt.NDArray[Any]], b: Mapping[str, npt.NDArray[Any]], statistic: Any
) -> float:
    """Return the p of swapping the two models' ranks of random pairs.

    Ranks, since the similarities of two models are not on one scale.
    """
    gold = rankdata(a["gold"]) if statistic is pearson_rows else a["gold"]
    rank_a, rank_b = rankdata(a["score"]), rankdata(b["score"])

    def difference(swap_RN: npt.NDArray[np.bool_]) -> Floats:
        golds = np.broadcast_to(gold, swap_RN.shape)
        first, second = np.where(swap_RN, rank_b, rank_a), np.where(swap_RN, rank_a, rank_b)
        found: Floats = statistic(second, golds) - statistic(first, golds)
        return found

    return swap_test(difference, len(gold))


def _most_different(one: Sample, two: Sample) -> list[dict[str, Any]]:
    """Return the units on which the models differ most, the best of B first, those of A after."""
    a, b = _per_unit(one), _per_unit(two)
    if a is None or b is None:
        return []
    order = np.argsort(a - b, kind="stable")  # the best of B first
    chosen = [i for i in order[:SHOWN] if b[i] > a[i]]
    chosen += [i for i in order[::-1][:SHOWN] if a[i] > b[i]]
    return [
        {"id": one.ids[i], "texts": one.texts[i], "a": float(a[i]), "b": float(b[i])}
        for i in chosen
    ]


def _per_unit(sample: Sample) -> Floats | None:
    """Return how well each unit is scored; None where units have no score alone."""
    arrays = sample.arrays
    if sample.statistic == "mean":
        return arrays["value"]
    if "gold" not in arrays:
        return None
    # A pair is judged well if its place among the scores is that of its gold value.
    count = len(sample)
    return np.asarray(
        1 - np.abs(rankdata(arrays["score"]) - rankdata(arrays["gold"])) / count, dtype=np.float64
    )
