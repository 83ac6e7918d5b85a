"""Tasks on labelled texts, by mteb's protocols: few-shot classification and clustering.

Both are mteb's to the random number: the same seeds, draws, estimators and order of experiments.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import RecordError, require
from embedlm.evaluation.readers import read_fields
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.subject import Scored, Subject, drawn
from embedlm.evaluation.suite import Classification, Clustering

__all__ = ["classification", "clustering", "few_of_each"]

Paths = Mapping[str, Path]
BATCH = 512
"""Texts of a batch of k-means."""


def few_of_each(labels: Sequence[str], few: int, experiments: int) -> list[list[int]]:
    """Return which texts each experiment learns from.

    The list is shuffled anew for each experiment, by the same seed, from the order that the one
    before left.
    """
    order, chosen = list(range(len(labels))), []
    for _ in range(experiments):
        np.random.RandomState(SEED).shuffle(order)
        taken: dict[str, int] = {}
        rows = []
        for i in order:
            if taken.get(labels[i], 0) < few:
                taken[labels[i]] = taken.get(labels[i], 0) + 1
                rows.append(i)
        chosen.append(rows)
    return chosen


def classification(subject: Subject, task: Classification, paths: Paths) -> Scored:
    """Score logistic regressions on a few vectors of each label; mean over the experiments."""
    linear = require("sklearn.linear_model", "eval")
    metrics = require("sklearn.metrics", "eval")
    train, test = (
        list(read_fields(paths[part], task.fields.text, task.fields.label))
        for part in ("train", "test")
    )
    test = [test[i] for i in drawn(len(test), task, SEED)]
    labels = [label for _, label in train]
    if len(set(labels)) < 2:
        raise RecordError(f"{paths['train']}: there is one label only; a classifier needs two")
    if {label for _, label in test}.isdisjoint(labels):
        raise RecordError(
            f"{paths['test']}: no label (such as {test[0][1]!r}) is one of {paths['train']} (such "
            f"as {labels[0]!r}); the labels must be the same in both files"
        )
    chosen = few_of_each(labels, task.samples_per_label, task.experiments)
    used = sorted({i for rows in chosen for i in rows})
    subject = subject.fitted([text for text, _ in train])
    row_of = {i: row for row, i in enumerate(used)}
    train_UD = subject.floats([train[i][0] for i in used], task)
    test_ND = subject.floats([text for text, _ in test], task)
    gold = np.array([label for _, label in test])
    right, f1 = [], []
    for rows in chosen:
        probe = linear.LogisticRegression(max_iter=100, random_state=SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 100 rounds are the protocol, converged or not
            probe.fit(train_UD[[row_of[i] for i in rows]], [labels[i] for i in rows])
            predicted = probe.predict(test_ND)
            f1.append(float(metrics.f1_score(gold, predicted, average="macro")))
        right.append(predicted == gold)
    found = {"accuracy": float(np.mean(right)), "f1": float(np.mean(f1))}
    found["accuracy_std"] = float(np.std([row.mean() for row in right]))
    texts, ids = [[text, label] for text, label in test], [str(i) for i in range(len(test))]
    value = np.mean(right, axis=0)
    notes = {"accuracies": [float(row.mean()) for row in right]}
    return Scored(found, Sample.of("mean", "text", ids, texts, {"value": value}), notes)


def clustering(subject: Subject, task: Clustering, paths: Paths) -> Scored:
    """Score how well k-means puts texts together by their labels; mean over the experiments."""
    cluster = require("sklearn.cluster", "eval")
    metrics = require("sklearn.metrics", "eval")
    rows = list(read_fields(paths["texts"], task.fields.text, task.fields.label))
    rows = [rows[i] for i in drawn(len(rows), task, SEED)]
    chance = random.Random(SEED)
    if task.documents is not None:
        rows = [rows[i] for i in chance.sample(range(len(rows)), min(len(rows), task.documents))]
    texts, labels = [text for text, _ in rows], np.array([label for _, label in rows])
    if len(set(labels)) < 2:
        raise RecordError(f"{paths['texts']}: there is one label only; clusters need two")
    if task.draws < len(set(labels)):
        raise RecordError(
            f"{paths['texts']}: there are {len(set(labels))} labels, and draws of {task.draws} "
            "texts cannot make as many clusters; raise draws"
        )
    vectors_ND = subject.fitted(texts).floats(texts, task)
    means = cluster.MiniBatchKMeans(
        n_clusters=len(np.unique(labels)),
        batch_size=BATCH,
        init="k-means++",
        n_init=1,
        random_state=SEED,
    )
    scores, assigned = [], []
    for _ in range(task.experiments):
        draw = chance.choices(range(len(rows)), k=task.draws)
        predicted = means.fit_predict(vectors_ND[draw])
        scores.append(float(metrics.v_measure_score(labels[draw], predicted)))
        assigned.append(_assigned(means, vectors_ND))
    found = {"v_measure": float(np.mean(scores)), "v_measure_std": float(np.std(scores))}
    ids = [str(i) for i in range(len(rows))]
    columns = {"label": labels, "clusters": assigned}
    sample = Sample.of("v_measure", "text", ids, [[text] for text in texts], columns)
    return Scored(found, sample, {"v_measures": scores})


def _assigned(means: Any, vectors_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return np.asarray(means.predict(vectors_ND), dtype=np.int64)
