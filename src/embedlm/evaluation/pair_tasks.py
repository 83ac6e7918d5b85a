"""Tasks on pairs of texts: similarity, classification of pairs, translations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from embedlm.errors import RecordError
from embedlm.evaluation.measures import (
    average_precision_rows,
    best_thresholds,
    matched_f1,
    pearson_rows,
    spearman,
)
from embedlm.evaluation.readers import number_of, read_fields, records_of, text_of
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.subject import Scored, Subject, drawn, pair_scores
from embedlm.evaluation.suite import Bitext, PairClassification, PairFields, Similarity

__all__ = ["bitext", "golden_pairs", "pair_classification", "similarity"]

Paths = Mapping[str, Path]
_BLOCK = 1024
"""Sentences that look for their translation at once."""


def golden_pairs(path: Path, fields: PairFields) -> list[tuple[str, str, float]]:
    """Return pairs of texts with their gold value.

    Raises:
        RecordError: a field that is missing, or a gold value that is no number, with file and line.
    """
    return [
        (
            text_of(record, where, fields.first),
            text_of(record, where, fields.second),
            number_of(record, where, fields.gold),
        )
        for where, record in records_of(path)
    ]


def _golden(path: Path, task: Similarity | PairClassification) -> list[tuple[str, str, float]]:
    pairs = golden_pairs(path, task.fields)
    return [pairs[i] for i in drawn(len(pairs), task, SEED)]


def similarity(subject: Subject, task: Similarity, paths: Paths) -> Scored:
    """Score the correlation of similarities with gold ones, by scipy's definitions."""
    rows = _golden(paths["pairs"], task)
    pairs, gold = [(a, b) for a, b, _ in rows], np.array([gold for *_, gold in rows])
    if np.ptp(gold) == 0:
        raise RecordError(
            f"{paths['pairs']}: {task.fields.gold!r} is {gold[0]:g} for every pair, and nothing "
            "correlates with that; give pairs that are alike and pairs that are not"
        )
    subject = subject.fitted([text for pair in pairs for text in pair])
    scores = pair_scores(subject, pairs, task)
    metrics = {}
    for name, values in scores.items():
        start = "" if name == "similarity" else f"{name}_"
        metrics[f"{start}spearman"] = spearman(values, gold)
        metrics[f"{start}pearson"] = float(pearson_rows(values[None], gold[None])[0])
    function, _, statistic = task.metric.rpartition("_")
    columns = {"score": scores[function or "similarity"], "gold": gold}
    ids = [str(number) for number in range(len(pairs))]
    return Scored(metrics, Sample.of(statistic, "pair", ids, pairs, columns))


def pair_classification(subject: Subject, task: PairClassification, paths: Paths) -> Scored:
    """Score how well a threshold on the similarity tells pairs apart, as mteb does."""
    rows = _golden(paths["pairs"], task)
    pairs, gold = [(a, b) for a, b, _ in rows], np.array([gold for *_, gold in rows])
    if not np.isin(gold, (0, 1)).all() or np.ptp(gold) == 0:
        raise RecordError(
            f"{paths['pairs']}: {task.fields.gold!r} must be 1 for pairs that belong together, 0 "
            "for others, and there must be some of both"
        )
    subject = subject.fitted([text for pair in pairs for text in pair])
    scores = pair_scores(subject, pairs, task)
    metrics: dict[str, float] = {}
    for name, values in scores.items():
        metrics[f"{name}_ap"] = float(average_precision_rows(values[None], gold[None])[0])
        for threshold, value in best_thresholds(values, gold).items():
            metrics[f"{name}_{threshold}"] = value
    for end in ("ap", "accuracy", "f1"):
        metrics[f"max_{end}"] = max(metrics[f"{name}_{end}"] for name in scores)
    function = task.metric.removesuffix("_ap")
    best = max(scores, key=lambda name: metrics[f"{name}_ap"])
    columns = {"score": scores.get(function, scores[best]), "gold": gold}
    ids = [str(number) for number in range(len(pairs))]
    return Scored(metrics, Sample.of("average_precision", "pair", ids, pairs, columns))


def bitext(subject: Subject, task: Bitext, paths: Paths) -> Scored:
    """Score whether each sentence's nearest neighbour among the others is its translation."""
    pairs = list(read_fields(paths["pairs"], task.fields.first, task.fields.second))
    pairs = [pairs[i] for i in drawn(len(pairs), task, SEED)]
    subject = subject.fitted([text for pair in pairs for text in pair])
    vectors = subject.dense([text for pair in pairs for text in pair], task)
    first, second = vectors[::2], vectors[1::2]
    nearest = [
        subject.model.similarity(first[start : start + _BLOCK], second).argmax(axis=1)
        for start in range(0, len(first), _BLOCK)
    ]
    predicted = np.concatenate(nearest)
    found = predicted == np.arange(len(pairs))
    each = matched_f1(predicted)
    metrics = {
        "f1": float(each.mean()),
        "accuracy": float(found.mean()),
        "precision": float((found / np.bincount(predicted)[predicted]).mean()),
    }
    ids = [str(number) for number in range(len(pairs))]
    values = each if task.metric == "f1" else found.astype(float)
    return Scored(metrics, Sample.of("mean", "pair", ids, pairs, {"value": values}))
