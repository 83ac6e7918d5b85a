"""Tasks: each embeds the texts of a data set, scores the vectors and names its main metric."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.embedder import Embedder
from embedlm.errors import InputError, closest, require
from embedlm.evaluation.metrics import (
    best_documents,
    mean_metric,
    ndcg,
    recall,
    reciprocal_rank,
    spearman,
)
from embedlm.evaluation.readers import read_labelled, read_pairs, read_retrieval
from embedlm.jobs.names import check_name
from embedlm.loader import load
from embedlm.schema.recipe import Sparse
from embedlm.search.fusion import fuse

__all__ = ["TASKS", "Result", "check_tasks", "check_words", "data_folder", "evaluate"]

DEPTH = 1000
"""Documents kept for each query."""
PROBE = 1.0
"""Inverse strength of a linear probe's penalty: vectors have length 1."""
RANKING = {"ndcg@10": ndcg, "recall@100": recall, "mrr@10": reciprocal_rank}
"""The metrics of a retrieval task, with the depths of their defaults."""


@dataclass(frozen=True, slots=True)
class Result:
    """One task's outcome."""

    task: str
    metric: str
    score: float
    seconds: float
    more: dict[str, float] = field(default_factory=dict)
    """Further metrics and heads."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def _fit(model: Embedder, texts: Sequence[str]) -> None:
    """Count the tokens of the texts for recipes that weigh tokens by their frequency."""
    if model.recipe.pooling.weights != "none":
        model.fit(texts)


def _similarity(model: Embedder, path: Path) -> tuple[str, float, dict[str, float]]:
    pairs = read_pairs(path)
    texts = [text for first, second, _ in pairs for text in (first, second)]
    _fit(model, texts)
    vectors = model.encode(texts, heads=["dense"])
    scores = model.similarity_pairwise(vectors[::2], vectors[1::2])
    return "spearman", spearman(scores, [gold for *_, gold in pairs]), {}


def _retrieval(
    model: Embedder, folder: Path, split: str | None, words: int | None
) -> tuple[str, float, dict[str, float]]:
    data = read_retrieval(folder, split)
    ids, texts = list(data.documents), list(data.documents.values())
    if words is not None:
        texts = [" ".join(text.split()[:words]) for text in texts]
    _fit(model, texts)
    documents = model.encode_document(texts)
    queries = model.encode_query(list(data.queries.values()))
    heads: list[str] = [head.kind for head in model.recipe.heads]
    runs = {
        head: best_documents(model.similarity(queries, documents, heads=[head]), ids, DEPTH)
        for head in heads
    }
    if any(isinstance(head, Sparse) for head in model.recipe.heads) and len(heads) > 1:
        runs["hybrid"] = [fuse(parts) for parts in zip(*runs.values(), strict=True)]
    gains = [data.relevant[query] for query in data.queries]
    scores = {
        f"{head}_{name}": mean_metric(metric, head_runs, gains)
        for head, head_runs in runs.items()
        for name, metric in RANKING.items()
    }
    return "ndcg@10", scores[f"{'hybrid' if 'hybrid' in runs else heads[0]}_ndcg@10"], scores


Task = Callable[[Embedder, Path, int | None], tuple[str, float, dict[str, float]]]


def _classification(model: Embedder, folder: Path) -> tuple[str, float, dict[str, float]]:
    """Score a linear probe: logistic regression on the training split's unit vectors."""
    sklearn = require("sklearn.linear_model", "eval")
    splits = {name: read_labelled(folder / f"{name}.jsonl") for name in ("train", "test")}
    _fit(model, [text for text, _ in splits["train"]])
    vectors = {
        name: model.encode([text for text, _ in rows], heads=["dense"], normalize=True)
        for name, rows in splits.items()
    }
    labels = {name: np.array([label for _, label in rows]) for name, rows in splits.items()}
    probe = sklearn.LogisticRegression(C=PROBE, max_iter=1000)
    probe.fit(vectors["train"], labels["train"])
    predicted = probe.predict(vectors["test"])
    return "accuracy", float((predicted == labels["test"]).mean()), {}


def _sts(name: str) -> Task:
    return lambda model, data, _: _similarity(model, data / "sts" / f"{name}.jsonl")


def _ir(name: str, split: str | None = None) -> Task:
    return lambda model, data, words: _retrieval(model, data / f"ir_{name}", split, words)


TASKS: dict[str, Task] = {
    **{name: _sts(name) for name in ("sts12", "sts13", "sts15", "sts16", "stsb_dev", "stsb_test")},
    "scifact": _ir("scifact", "validation"),
    **{name: _ir(name) for name in ("cranfield", "cisi", "adi")},
    "banking77": lambda model, data, _: _classification(model, data / "banking77"),
}
"""Each task takes a model, the data folder and how many words of a document to embed."""
CORPORA = frozenset({"scifact", "cranfield", "cisi", "adi"})
"""Tasks with documents to shorten."""


def check_tasks(names: Sequence[str]) -> None:
    """Refuse an unknown task, and a list of none.

    Raises:
        InputError: with the names that are allowed.
    """
    if not names:
        raise InputError(f"no task was given; allowed: {', '.join(TASKS)}")
    for name in names:
        if name not in TASKS:
            raise InputError(
                f"{name!r} is not a task; allowed: {', '.join(TASKS)}." + closest(name, list(TASKS))
            )


def check_words(tasks: Sequence[str], words: int | None) -> None:
    """Refuse a number of words below 1, or for tasks without documents that it would shorten.

    Raises:
        InputError: with what is allowed.
    """
    if words is None:
        return
    if words < 1:
        raise InputError(f"words is {words}; give a number above 0, or None for whole documents")
    if not CORPORA & set(tasks):
        raise InputError(
            f"words (--words) shortens the documents of a corpus, and {', '.join(tasks)} have "
            f"none; leave it out, or take one of {', '.join(sorted(CORPORA))}"
        )


def data_folder(data: str | Path | None = None) -> Path:
    """Return the folder of the data sets: the one given, or else $EMBEDLM_DATA.

    Raises:
        InputError: neither is given, or it is not a folder.
    """
    folder = data if data is not None else os.environ.get("EMBEDLM_DATA") or None
    if folder is None:
        raise InputError(
            "no data folder was given; give --data DIR (data=) or set EMBEDLM_DATA to the folder "
            "that holds the data sets"
        )
    check_name(folder, "data folder")
    if not Path(folder).is_dir():
        raise InputError(
            f"the data folder {str(folder)!r} is not there; give --data DIR (data=) or set "
            "EMBEDLM_DATA"
        )
    return Path(folder)


def evaluate(
    model: Embedder | str | Path | None = None,
    tasks: Sequence[str] = ("stsb_dev",),
    *,
    data: str | Path | None = None,
    words: int | None = None,
    **options: Any,
) -> list[Result]:
    """Score a model on tasks.

    Args:
        model: an embedder, or what `embedlm.load` takes.
        tasks: names from `TASKS`.
        data: the folder that holds the data sets; None takes $EMBEDLM_DATA.
        words: embed only the first so many words of each document; None embeds all.
        **options: passed to `embedlm.load`.

    Raises:
        InputError: an unknown task, or a data folder that does not exist.
    """
    check_tasks(tasks)
    check_words(tasks, words)
    folder = data_folder(data)
    embedder = model if isinstance(model, Embedder) else load(model, **options)
    results = []
    for name in tasks:
        start = time.perf_counter()
        metric, score, more = TASKS[name](embedder, folder, words)
        results.append(Result(name, metric, score, time.perf_counter() - start, more))
    return results
