"""Metrics of scores and labels, each over many rows at once so that resampling is fast.

They equal scipy's and scikit-learn's on one row, ties included; the tests compare them.

Shapes: R rows (resamples), N items, E experiments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

__all__ = [
    "average_precision_rows",
    "best_thresholds",
    "matched_f1",
    "pearson_rows",
    "spearman",
    "spearman_rows",
    "v_measure_rows",
]

Floats = npt.NDArray[np.float64]


def pearson_rows(a_RN: npt.ArrayLike, b_RN: npt.ArrayLike) -> Floats:
    """Return the correlation of each row of a with that of b; 0 where one of them is constant."""
    a, b = np.asarray(a_RN, dtype=np.float64), np.asarray(b_RN, dtype=np.float64)
    constant = (np.ptp(a, axis=1) == 0) | (np.ptp(b, axis=1) == 0)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    found = (a * b).sum(axis=1) / np.where(constant, 1, spread)
    return np.where(constant, 0.0, np.clip(found, -1, 1))


def spearman_rows(scores_RN: npt.ArrayLike, gold_RN: npt.ArrayLike) -> Floats:
    """Return the rank correlation of each row; ties share their mean rank."""
    scores, gold = np.asarray(scores_RN), np.asarray(gold_RN)
    return pearson_rows(rankdata(scores, axis=1), rankdata(gold, axis=1))


def spearman(scores: npt.ArrayLike, gold: npt.ArrayLike) -> float:
    """Rank correlation in -1..1; 0 where all scores are equal."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2:
        return 0.0
    return float(spearman_rows(values[None], np.asarray(gold, dtype=np.float64)[None])[0])


def _sorted(scores_RN: Any, labels_RN: Any) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the positives, best first, and which places end a group of equal scores."""
    scores, labels = np.asarray(scores_RN), np.asarray(labels_RN)
    order = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=1)
    positive_RN = np.take_along_axis(labels, order, axis=1).astype(np.float64)
    ends_RN = np.ones(scores.shape, dtype=bool)
    ends_RN[:, :-1] = scores[:, :-1] != scores[:, 1:]
    return positive_RN, ends_RN


def average_precision_rows(scores_RN: npt.ArrayLike, labels_RN: npt.ArrayLike) -> Floats:
    """Return sum over thresholds of (recall_i - recall_(i-1)) * precision_i, for each row.

    The labels are 0 and 1; items of equal score share one threshold; a row without positives has 0.
    """
    positive_RN, ends_RN = _sorted(scores_RN, labels_RN)
    places = np.arange(positive_RN.shape[1])
    last = np.where(ends_RN, places, len(places))
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    found = np.take_along_axis(positive_RN.cumsum(axis=1), last, axis=1)
    total = positive_RN.sum(axis=1)
    summed: Floats = (positive_RN * found / (last + 1)).sum(axis=1)
    found_R: Floats = summed / np.maximum(total, 1)
    return found_R


def best_thresholds(scores_N: npt.ArrayLike, labels_N: npt.ArrayLike) -> dict[str, float]:
    """Return the best accuracy and the best F1 over thresholds, as mteb computes them.

    A threshold lies between two scores that differ, so never below all of them.
    """
    positive_RN, ends_RN = _sorted(np.asarray(scores_N)[None], np.asarray(labels_N)[None])
    positive, ends = positive_RN[0], ends_RN[0].copy()
    ends[-1:] = False
    taken = np.flatnonzero(ends) + 1
    found = positive.cumsum()[taken - 1]
    total, count = positive.sum(), len(positive)
    right = found + (count - total) - (taken - found)
    f1 = 2 * found / np.maximum(taken + total, 1)
    return {"accuracy": float((right / count).max(initial=0)), "f1": float(f1.max(initial=0))}


def matched_f1(predicted_N: npt.ArrayLike) -> Floats:
    """Return each item's part of the weighted F1 of a matching in which item i belongs to i.

    Every label occurs once, so its recall is whether i was found, its precision 1 over how often i
    was predicted, and the weighted F1 the mean of 2 * [i found] / (1 + predictions of i).
    """
    predicted = np.asarray(predicted_N)
    count = np.bincount(predicted, minlength=len(predicted))[: len(predicted)]
    return np.where(predicted == np.arange(len(predicted)), 2 / (1 + count), 0.0)


def v_measure_rows(
    labels_N: npt.NDArray[np.int64], clusters_N: npt.NDArray[np.int64], index_RN: Any
) -> Floats:
    """Return the V-measure (Rosenberg and Hirschberg, 2007) of the items that each row names.

    2 I(L; C) / (H(L) + H(C)); 1 where both are constant.
    """
    wide, high = int(clusters_N.max()) + 1, int(labels_N.max()) + 1
    cell_RN = (labels_N * wide + clusters_N)[index_RN]
    rows = len(cell_RN)
    flat = (cell_RN + np.arange(rows)[:, None] * wide * high).ravel()
    share = np.bincount(flat, minlength=rows * wide * high).reshape(rows, high, wide)
    share = share / cell_RN.shape[1]
    joint = _entropy(share.reshape(rows, -1))
    of_labels, of_clusters = _entropy(share.sum(axis=2)), _entropy(share.sum(axis=1))
    whole = of_labels + of_clusters
    mutual = np.maximum(whole - joint, 0)
    return np.where(whole > 1e-12, 2 * mutual / np.maximum(whole, 1e-12), 1.0)


def _entropy(share_RK: Floats) -> Floats:
    logs = np.log(share_RK, where=share_RK > 0, out=np.zeros_like(share_RK))
    return np.asarray(-(share_RK * logs).sum(axis=1), dtype=np.float64)
