"""What a projection takes of a concept in vectors, and what it costs in quality."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.data import read_rows
from embedlm.errors import RecordError, require
from embedlm.evaluation.association import AssociationTest, effects_of, read_tests
from embedlm.evaluation.erasure import Eraser, hard_debias, inlp, leace
from embedlm.evaluation.measures import spearman, spearman_rows
from embedlm.evaluation.pair_tasks import golden_pairs
from embedlm.evaluation.probes import Debiasing
from embedlm.evaluation.readers import text_of
from embedlm.evaluation.sample import Sample, uncertainty
from embedlm.evaluation.statistics import SEED, Indices, Statistic
from embedlm.evaluation.subject import Scored, Subject
from embedlm.readout.similarity import cosine

__all__ = ["debiasing"]

Floats = npt.NDArray[np.float32]
_WORD = re.compile(r"\w+|[^\w\s\[\]]")


@dataclass(frozen=True, slots=True)
class _Grouped:
    """A text of a group."""

    text: str
    second: bool
    key: str
    """The text without words of groups: texts with one key are a pair."""


def debiasing(subject: Subject, task: Debiasing, paths: Mapping[str, Path]) -> Scored:
    """Score what is left of a concept after projections took it out, and what they cost.

    Projections are fitted on half of the grouped texts, and so is a logistic regression, which then
    names the group of the other half. METHOD_probe is how often it is right after the projection
    (`probe_before` without, `chance` for the larger group), METHOD_effect the mean |d| of
    association tests, METHOD_cost the loss of Spearman. `probe` is that of the first method.
    """
    fit, held = _halves(paths["texts"], task)
    tests = read_tests(paths["tests"], task.fields, task.only)
    pairs = golden_pairs(paths["quality"], task.pairs)
    sentences = [text for first, second, _ in pairs for text in (first, second)]
    words = list(dict.fromkeys(text for test in tests for text in test.texts))
    subject = subject.fitted(sentences)
    fit_ND, held_ND = (subject.floats([one.text for one in half], task) for half in (fit, held))
    vectors = _Vectors(
        fit_ND,
        held_ND,
        subject.floats(words, task),
        subject.floats(sentences, task),
        np.array([one.second for one in fit]),
        np.array([one.second for one in held]),
        np.array([value for *_, value in pairs]),
    )
    found = {"before": _measured(vectors, None, tests, words)}
    directions: dict[str, int] = {}
    for method in task.methods:
        erase = _eraser(method, paths["texts"], fit, fit_ND)
        found[method], directions[method] = _measured(vectors, erase, tests, words), erase.rank
    return _told(found, vectors, [one.text for one in held], directions)


@dataclass(frozen=True, slots=True)
class _Vectors:
    """All vectors that a projection is measured by, and what is known of their texts."""

    fit_ND: Floats
    held_ND: Floats
    words_ND: Floats
    sentences_ND: Floats
    labels: npt.NDArray[np.bool_]
    held_labels: npt.NDArray[np.bool_]
    gold: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Measured:
    right: npt.NDArray[np.bool_]
    """Whether the probe names the group of each held text."""
    effect: float
    scores: Floats
    """The similarities of the pairs with a gold one."""


def _measured(
    vectors: _Vectors, erase: Eraser | None, tests: Sequence[AssociationTest], words: Sequence[str]
) -> _Measured:
    fit, held, targets, sentences = (
        one if erase is None else erase(one)
        for one in (vectors.fit_ND, vectors.held_ND, vectors.words_ND, vectors.sentences_ND)
    )
    linear = require("sklearn.linear_model", "eval")
    probe = linear.LogisticRegression(max_iter=1000, random_state=SEED).fit(fit, vectors.labels)
    by_text = dict(zip(words, targets, strict=True))
    effect = float(np.mean([abs(one.effect) for one in effects_of(tests, by_text, 1)]))
    scores = cosine(sentences[::2], sentences[1::2], pairwise=True)
    return _Measured(probe.predict(held) == vectors.held_labels, effect, scores)


def _told(
    found: Mapping[str, _Measured],
    vectors: _Vectors,
    texts: Sequence[str],
    directions: Mapping[str, int],
) -> Scored:
    before, gold = found["before"], vectors.gold
    first = found[next(iter(directions))].right.astype(float)
    share = float(vectors.held_labels.mean())
    metrics = {
        "probe": float(first.mean()),
        "chance": max(share, 1 - share),
        "probe_before": float(before.right.mean()),
        "effect_before": before.effect,
        "spearman_before": spearman(before.scores, gold),
    }
    notes: dict[str, Any] = {"directions": dict(directions), "cost_intervals": {}}
    for method in directions:
        after = found[method]
        sure = uncertainty(_loss(before.scores, after.scores, gold), len(gold))
        metrics[f"{method}_probe"] = float(after.right.mean())
        metrics[f"{method}_effect"] = after.effect
        metrics[f"{method}_cost"] = metrics["spearman_before"] - spearman(after.scores, gold)
        notes["cost_intervals"][method] = [sure.low, sure.high]
    ids = [str(number) for number in range(len(texts))]
    sample = Sample.of("mean", "text", ids, [[text] for text in texts], {"value": first})
    return Scored(metrics, sample, notes)


def _loss(before: Floats, after: Floats, gold: npt.NDArray[np.float64]) -> Statistic:
    def lost(index_RN: Indices) -> npt.NDArray[np.float64]:
        golds = gold[index_RN]
        return spearman_rows(before[index_RN], golds) - spearman_rows(after[index_RN], golds)

    return lost


def _halves(path: Path, task: Debiasing) -> tuple[list[_Grouped], list[_Grouped]]:
    """Return the texts that name one group, in two halves that share no pair."""
    by_key: dict[str, list[_Grouped]] = {}
    for where, record in read_rows(path):
        found = _grouped(text_of(record, where, task.text), task.groups)
        if found is not None:
            by_key.setdefault(found.key, []).append(found)
    keys = list(by_key)
    order = np.random.default_rng(SEED).permutation(len(keys))
    sides: list[list[_Grouped]] = [[], []]
    for place, i in enumerate(order.tolist()):
        sides[place % 2] += by_key[keys[i]]
    if not all({one.second for one in side} == {True, False} for side in sides):
        raise RecordError(
            f"{path}: too few texts name one of the groups {', '.join(task.groups)} by their words"
        )
    return sides[0], sides[1]


def _grouped(text: str, groups: Mapping[str, list[str]]) -> _Grouped | None:
    """Return a text with its group; None where it names no group or both."""
    first, second = ({word.casefold() for word in words} for words in groups.values())
    words = [word.casefold() for word in _WORD.findall(text)]
    has = [any(word in group for word in words) for group in (first, second)]
    if has[0] == has[1]:
        return None
    key = " ".join("_" if word in first | second else word for word in words)
    return _Grouped(text.replace("[", "").replace("]", ""), has[1], key)


def _eraser(method: str, path: Path, fit: list[_Grouped], vectors_ND: Floats) -> Eraser:
    labels = np.array([one.second for one in fit])
    if method == "leace":
        return leace(vectors_ND, labels)
    if method == "inlp":
        return inlp(vectors_ND, labels)
    rows: dict[str, dict[bool, int]] = {}
    for row, one in enumerate(fit):
        rows.setdefault(one.key, {})[one.second] = row
    pairs = [sides for sides in rows.values() if len(sides) == 2]
    if len(pairs) < 2:
        raise RecordError(
            f"{path}: {len(pairs)} pairs of texts differ in the words of groups alone, and hard "
            "debiasing needs two at least; take leace or inlp"
        )
    first, second = ([sides[side] for sides in pairs] for side in (False, True))
    return hard_debias(vectors_ND[first], vectors_ND[second])
