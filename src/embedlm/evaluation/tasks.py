"""Tasks: what is embedded, how it is scored, which number counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.embedder import Embedder
from embedlm.errors import InputError, closest, require
from embedlm.evaluation.metrics import ndcg, recall, reciprocal_rank, spearman
from embedlm.evaluation.readers import read_labelled, read_pairs, read_retrieval
from embedlm.loader import load
from embedlm.readout.similarity import hybrid_runs
from embedlm.schema.recipe import Sparse

__all__ = ["TASKS", "Result", "evaluate", "rank"]

DEPTH = 1000
"""Documents kept for each query."""
PROBE = 1.0
"""Inverse strength of a linear probe's penalty: vectors have length 1."""


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
    """Give floors that weigh tokens by frequency the frequencies of what they embed."""
    if model.recipe.pooling.weights != "none":
        model.fit(texts)


def _similarity(model: Embedder, path: Path) -> tuple[str, float, dict[str, float]]:
    pairs = read_pairs(path)
    texts = [text for first, second, _ in pairs for text in (first, second)]
    _fit(model, texts)
    vectors = model.encode(texts, heads=["dense"])
    scores = model.similarity_pairwise(vectors[::2], vectors[1::2])
    return "spearman", spearman(scores, [gold for *_, gold in pairs]), {}


def rank(scores_QN: npt.NDArray[np.float32], names: Sequence[str]) -> list[dict[str, float]]:
    """Return each query's best documents with their scores; ties by the documents' order."""
    depth = min(DEPTH, scores_QN.shape[1])
    order_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :depth]
    return [
        {names[i]: float(scores[i]) for i in order.tolist()}
        for scores, order in zip(scores_QN, order_QK, strict=True)
    ]


def _retrieval(
    model: Embedder, folder: Path, split: str | None, words: int | None
) -> tuple[str, float, dict[str, float]]:
    data = read_retrieval(folder, split)
    names, texts = list(data.documents), list(data.documents.values())
    if words is not None:
        texts = [" ".join(text.split()[:words]) for text in texts]
    _fit(model, texts)
    documents = model.encode_document(texts)
    queries = model.encode_query(list(data.queries.values()))
    heads: list[str] = [head.kind for head in model.recipe.heads]
    runs = {head: rank(model.similarity(queries, documents, heads=[head]), names) for head in heads}
    if any(isinstance(head, Sparse) for head in model.recipe.heads) and len(heads) > 1:
        every = zip(*runs.values(), strict=True)
        runs["hybrid"] = [hybrid_runs(parts) for parts in every]
    found: dict[str, float] = {}
    for head, ranked in runs.items():
        found.update(_retrieval_scores(head, ranked, list(data.queries), data.relevant))
    main = found[f"{'hybrid' if 'hybrid' in runs else heads[0]}_ndcg@10"]
    return "ndcg@10", main, found


def _retrieval_scores(
    head: str,
    runs: Sequence[Mapping[str, float]],
    queries: Sequence[str],
    relevant: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    ordered = [sorted(run, key=lambda d: -run[d]) for run in runs]
    metrics: dict[str, Callable[[Sequence[str], Mapping[str, float]], float]] = {
        "ndcg@10": ndcg,
        "recall@100": recall,
        "mrr@10": reciprocal_rank,
    }
    return {
        f"{head}_{name}": float(
            np.mean([metric(row, relevant[q]) for row, q in zip(ordered, queries, strict=True)])
        )
        for name, metric in metrics.items()
    }


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
    found = probe.predict(vectors["test"])
    return "accuracy", float((found == labels["test"]).mean()), {}


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
"""Each task takes a model, the data folder and how many words of a document are read."""


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
        tasks: names out of `TASKS`.
        data: folder of the data sets; None takes $EMBEDLM_DATA.
        words: read only that many words of each document; None reads all.
        **options: passed to `embedlm.load`.

    Raises:
        InputError: an unknown task, or data that are not there.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is not a task; allowed: {', '.join(TASKS)}."
            + closest(unknown[0], list(TASKS))
        )
    place = data or os.environ.get("EMBEDLM_DATA")
    if place is None or not Path(place).is_dir():
        raise InputError(f"the data folder {place!r} is not there; give data= or set EMBEDLM_DATA")
    embedder = model if isinstance(model, Embedder) else load(model, **options)
    results = []
    for name in tasks:
        start = time.perf_counter()
        metric, score, more = TASKS[name](embedder, Path(place), words)
        results.append(Result(name, metric, score, time.perf_counter() - start, more))
    return results
