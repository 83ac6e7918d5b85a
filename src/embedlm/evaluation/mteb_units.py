"""The units that a score of mteb's is made of, from the predictions that mteb keeps.

A task whose units cannot be told has none; no interval is better than one of something else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, require
from embedlm.evaluation.measures import matched_f1, v_measure_rows
from embedlm.evaluation.metrics import score_queries
from embedlm.evaluation.sample import Sample
from embedlm.jobs.json_files import read_json

__all__ = ["units_of"]

_FUNCTIONS = {
    "similarity": ("similarity_scores", 1),
    "cosine": ("cosine_scores", 1),
    "manhattan": ("manhattan_distances", -1),
    "euclidean": ("euclidean_distances", -1),
    "dot": ("dot_scores", 1),
}
"""mteb's names of similarities, where its predictions hold them, and whether more is nearer."""
_CLOSE = 5e-4
"""By how much a score that is made of the units again may differ from mteb's."""

Part = Mapping[str, Any]


def units_of(task: Any, metric: str, part: Part, predictions: Path) -> Sample | None:
    """Return the units of a task's only split and subset; None where they cannot be told.

    Args:
        task: of mteb.
        metric: its main score.
        part: mteb's scores of the split.
        predictions: mteb's file.

    Raises:
        InputError: a file that cannot be read.
    """
    tasks = require("mteb.abstasks", "mteb")
    kinds: list[tuple[Any, Callable[[Any, str, Part, Any, Any], Sample | None]]] = [
        (tasks.AbsTaskRetrieval, _queries),
        (tasks.AbsTaskSTS, _scored_pairs),
        (tasks.AbsTaskPairClassification, _told_apart),
        (tasks.AbsTaskMultilabelClassification, lambda *_: None),
        (tasks.AbsTaskClassification, _labelled),
        (tasks.AbsTaskBitextMining, _translations),
        (tasks.AbsTaskClustering, _clustered),
    ]
    read = next((one for kind, one in kinds if isinstance(task, kind)), None)
    if read is None:
        return None
    kept = read_json(predictions, InputError)
    (subset,) = [name for name in kept if name != "mteb_model_meta"]
    (split,) = kept[subset]
    task.load_data()
    whole = task.dataset.get(subset, task.dataset)
    sample = read(task, metric, part, whole[split], kept[subset][split])
    if sample is None or len(sample) < 2:
        return None
    if sample.statistic == "v_measure":  # is of draws, and these are of texts
        return sample
    again = float(sample.rows()(np.arange(len(sample))[None])[0])
    return sample if abs(again - float(part[metric])) < _CLOSE else None


def _sample(
    statistic: str, unit: str, texts: Sequence[Sequence[Any]], columns: Mapping[str, Any]
) -> Sample:
    shown = [[str(text) for text in own] for own in texts]
    return Sample.of(statistic, unit, [str(i) for i in range(len(shown))], shown, columns)


def _queries(task: Any, metric: str, part: Part, rows: Any, runs: Any) -> Sample | None:
    kind, _, depth = metric.rpartition("_at_")
    if kind not in ("ndcg", "map", "mrr", "recall"):
        return None
    judged = {
        query: {document: float(gain) for document, gain in gains.items()}
        for query, gains in rows["relevant_docs"].items()
        if any(gain > 0 for gain in gains.values())
    }
    name = f"{kind}@{depth}"
    value = np.array(score_queries(runs, judged, [name])[name])
    texts = dict(zip(rows["queries"]["id"], rows["queries"]["text"], strict=True))
    relevant = [[d for d, gain in gains.items() if gain > 0] for gains in judged.values()]
    ids = list(judged)
    shown = [[str(texts.get(one, one))] for one in ids]
    return Sample.of("mean", "query", ids, shown, {"value": value}, relevant)


def _scored_pairs(task: Any, metric: str, part: Part, rows: Any, found: Any) -> Sample | None:
    function, _, statistic = metric.rpartition("_")
    name, _ = _FUNCTIONS.get(function or "similarity", ("", 1))
    if statistic not in ("spearman", "pearson") or found.get(name) is None:
        return None
    first, second = task.column_names
    columns = {"score": found[name], "gold": [float(score) for score in rows["score"]]}
    texts = list(zip(rows[first], rows[second], strict=True))
    return _sample(statistic, "pair", texts, columns)


def _told_apart(task: Any, metric: str, part: Part, rows: Any, found: Any) -> Sample | None:
    function, _, end = metric.rpartition("_")
    named = {
        name: sign * np.array(found[key], dtype=float)
        for name, (key, sign) in _FUNCTIONS.items()
        if found.get(key) is not None
    }
    if function == "max" and end == "ap":
        function = max(named, key=lambda name: float(part.get(f"{name}_ap", 0)))
    if end != "ap" or function not in named:
        return None
    columns = [task.label_column_name, task.input1_column_name, task.input2_column_name]
    gold, first, second = (rows[0][c] if len(rows) == 1 else rows[c] for c in columns)
    texts = list(zip(first, second, strict=True))
    return _sample("average_precision", "pair", texts, {"score": named[function], "gold": gold})


def _labelled(task: Any, metric: str, part: Part, rows: Any, found: Any) -> Sample | None:
    gold = np.array(rows[task.label_column_name])
    predicted = np.array(found)
    if metric != "accuracy" or predicted.shape[1:] != gold.shape:
        return None  # as where each experiment is tested on texts of its own
    texts = [[text, label] for text, label in zip(rows[task.input_column_name], gold, strict=True)]
    return _sample("mean", "text", texts, {"value": (predicted == gold).mean(axis=0)})


def _translations(task: Any, metric: str, part: Part, rows: Any, found: Any) -> Sample | None:
    if metric not in ("f1", "accuracy") or "gold" in rows or len(found) != 1:
        return None
    ((columns, neighbours),) = found.items()
    nearest = np.array([one["corpus_id"] for one in neighbours])
    right = nearest == np.arange(len(nearest))
    value = matched_f1(nearest) if metric == "f1" else right.astype(float)
    first, second = columns.split("-")
    if first not in rows.column_names or second not in rows.column_names:
        return None
    texts = list(zip(rows[first], rows[second], strict=True))
    return _sample("mean", "pair", texts, {"value": value})


def _clustered(task: Any, metric: str, part: Part, rows: Any, found: Any) -> Sample | None:
    """Return the texts that every experiment drew, with their label and their clusters.

    mteb keeps the clusters of its draws and not what was drawn, so the draws are made again from
    its seed. They are taken if they give its scores again.
    """
    if metric != "v_measure" or len(found) != 1:
        return None  # labels of several levels
    ((level, experiments),) = found.items()
    chance = random.Random(task.seed)
    chosen = _embedded(task, len(rows), chance)
    labels = [rows[task.label_column_name][i] for i in chosen]
    plain = [label[0] if isinstance(label, list) else label for label in labels]
    label_n = np.unique(plain, return_inverse=True)[1]
    scores = part.get("v_measures", {}).get(level, ())
    cluster_EN = np.full((len(experiments), len(chosen)), -1)
    for own_N, score, assigned in zip(cluster_EN, scores, experiments, strict=True):
        drawn = np.array(chance.choices(range(len(chosen)), k=len(assigned)))
        if abs(_v_measure(label_n[drawn], np.array(assigned)) - score) > _CLOSE:
            return None
        own_N[drawn] = assigned
    kept = np.flatnonzero((cluster_EN >= 0).all(axis=0))
    if 2 * len(kept) < len(chosen):
        return None
    texts = [[rows[task.input_column_name][chosen[i]]] for i in kept.tolist()]
    columns = {"label": label_n[kept], "clusters": cluster_EN[:, kept]}
    return _sample("v_measure", "text", texts, columns)


def _embedded(task: Any, count: int, chance: random.Random) -> Sequence[int]:
    """Return which texts mteb embeds; it draws where a task limits their number."""
    share, most = task.max_fraction_of_documents_to_embed, task.max_document_to_embed
    if share is None and most is None:
        return range(count)
    return chance.sample(range(count), k=min(count, int(share * count) if share else most))


def _v_measure(label_N: npt.NDArray[Any], cluster_N: npt.NDArray[Any]) -> float:
    return float(v_measure_rows(label_N, cluster_N, np.arange(len(label_N))[None])[0])
