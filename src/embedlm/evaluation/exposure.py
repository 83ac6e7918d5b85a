"""Who is shown: the attention that documents of a group get, and what moves a document up.

A reader looks at rank r with the weight 1 / log2(1 + r) (Singh and Joachims, KDD 2018). Where
documents deserve a query alike, each group should get the share of attention that it has of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.data import read_rows
from embedlm.data.words import word_count
from embedlm.errors import InputError, RecordError
from embedlm.evaluation.collection import judged_sample, main_head
from embedlm.evaluation.measures import spearman
from embedlm.evaluation.metrics import ranking, score_queries
from embedlm.evaluation.probes import Exposure, LengthBias, PositionBias
from embedlm.evaluation.readers import text_of
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED, sign_flip
from embedlm.evaluation.subject import Scored, Subject, drawn

__all__ = ["attention", "exposure", "length_bias", "position_bias"]

Paths = Mapping[str, Path]
Floats = npt.NDArray[np.float64]


def attention(rank: int) -> float:
    """Return the weight of a rank, counted from 1: 1 / log2(1 + rank)."""
    return 1 / math.log2(1 + rank)


# -- groups -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Document:
    id: str
    text: str
    group: str
    topic: str


def exposure(subject: Subject, task: Exposure, paths: Paths) -> Scored:
    """Score the share of attention that documents of a group get beyond their share of them.

    exposure_gap = mean over queries of (share of attention - share of documents); ideal 0
    skew_G@k = ln(share of the first k of all documents / share of all documents of the topic)
    unfairness = (largest - smallest mean rank of a group) * deviation of these mean ranks
                 (arXiv 2411.13173)
    """
    documents, queries = _read(task, paths)
    queries = [queries[i] for i in drawn(len(queries), task, SEED)]
    groups = list(dict.fromkeys(document.group for document in documents))
    if len(groups) < 2:
        raise RecordError(f"{paths['corpus']}: all documents are of the group {groups[0]!r}")
    main = groups[0] if task.group is None else task.group
    if main not in groups:
        raise InputError(f"group is {main!r}; {paths['corpus']} has {', '.join(groups)}")
    head = main_head(subject)
    subject = subject.fitted([document.text for document in documents])
    found = subject.encode([d.text for d in documents], task, "document", heads=head)
    asked = subject.encode([text for text, _ in queries], task, "query", heads=head)
    scores_QN = subject.model.similarity(asked, found, heads=head)
    rows = [
        _row(scores, [d for d in documents if d.topic == topic], documents, groups, task.depth)
        for scores, (_, topic) in zip(scores_QN, queries, strict=True)
    ]
    return _exposed(rows, queries, groups, main, task)


def _read(task: Exposure, paths: Paths) -> tuple[list[_Document], list[tuple[str, str]]]:
    """Return the documents, and the queries that have documents of their topic."""
    names = task.fields
    documents = []
    for number, (where, row) in enumerate(read_rows(paths["corpus"])):
        id_ = str(number) if names.document_id is None else text_of(row, where, names.document_id)
        topic = "" if names.topic is None else text_of(row, where, names.topic)
        text, group = text_of(row, where, names.text), text_of(row, where, names.group)
        documents.append(_Document(id_, text, group, topic))
    topics = {document.topic for document in documents}
    queries = []
    for where, row in read_rows(paths["queries"]):
        topic = "" if names.topic is None else text_of(row, where, names.topic)
        if topic in topics:
            queries.append((text_of(row, where, names.query), topic))
    if len(queries) < 2:
        raise RecordError(
            f"{paths['queries']}: {len(queries)} queries have documents of their topic in "
            f"{paths['corpus']}; two at least are needed"
        )
    return documents, queries


def _row(
    scores_N: npt.NDArray[Any],
    own: Sequence[_Document],
    documents: Sequence[_Document],
    groups: Sequence[str],
    depth: int,
) -> dict[str, dict[str, float]]:
    """Return the gap, skew and mean rank of each group for one query."""
    by_id = {document.id: float(s) for document, s in zip(documents, scores_N, strict=True)}
    rank_of = {name: rank for rank, name in enumerate(ranking(by_id), 1)}
    weight = {document.id: attention(rank_of[document.id]) for document in own}
    total = sum(weight.values())
    first = [document for document in own if rank_of[document.id] <= depth]
    told = {}
    for group in groups:
        mine = [document for document in own if document.group == group]
        share = len(mine) / len(own)
        shown = sum(document.group == group for document in first) / max(len(first), 1)
        ranks = [rank_of[document.id] for document in mine]
        told[group] = {
            "gap": sum(weight[document.id] for document in mine) / total - share,
            "shown": shown,
            "share": share,
            "rank": float(np.mean(ranks)) if ranks else math.nan,
        }
    return told


def _exposed(
    rows: Sequence[dict[str, dict[str, float]]],
    queries: Sequence[tuple[str, str]],
    groups: Sequence[str],
    main: str,
    task: Exposure,
) -> Scored:
    gaps = {group: np.array([row[group]["gap"] for row in rows]) for group in groups}
    ranks = {group: float(np.nanmean([row[group]["rank"] for row in rows])) for group in groups}
    mean_ranks = np.array(list(ranks.values()))
    metrics = {"exposure_gap": float(gaps[main].mean())}
    for group in groups:
        shown = float(np.mean([row[group]["shown"] for row in rows]))
        share = float(np.mean([row[group]["share"] for row in rows]))
        metrics[f"exposure_gap_{group}"] = float(gaps[group].mean())
        # A share of 0 has no logarithm: half a document is counted.
        least = 0.5 / (task.depth * len(rows))
        metrics[f"skew_{group}@{task.depth}"] = math.log(max(shown, least) / max(share, least))
        metrics[f"rank_{group}"] = ranks[group]
    metrics["unfairness"] = float(np.ptp(mean_ranks) * mean_ranks.std())
    notes = {"group": main, "p": {group: sign_flip(gap) for group, gap in gaps.items()}}
    columns = {"value": gaps[main], **{f"gap_{group}": gap for group, gap in gaps.items()}}
    ids = [str(number) for number in range(len(queries))]
    texts = [[text] for text, _ in queries]
    return Scored(metrics, Sample.of("mean", "query", ids, texts, columns), notes)


# -- positions and lengths --------------------------------------------------------------------


def position_bias(subject: Subject, task: PositionBias, paths: Paths) -> Scored:
    """Score how much closer a query is to a document that begins with the answer than to others.

    Each query's first relevant passage stands among passages that answer nothing of it: first, in
    the middle, and last. `start_advantage` is the similarity at the start less that at the end;
    `ndcg@10_start` ... rank each query's document among those of all queries.
    """
    data = judged_sample(subject, task, paths)
    rng = np.random.default_rng(SEED)
    names, texts = list(data.queries), data.documents
    made: dict[str, list[str]] = {"start": [], "middle": [], "end": []}
    for name in names:
        judged = data.relevant[name]
        answers = [document for document, gain in judged.items() if gain > 0 and document in texts]
        if not answers:
            raise RecordError(f"{paths['qrels']}: query {name} has no document of the corpus")
        best = max(answers, key=lambda document: judged[document])
        others = [document for document in texts if document not in judged]
        if len(others) < task.passages - 1:
            raise RecordError(f"{paths['corpus']}: fewer than {task.passages - 1} other documents")
        filler = [texts[others[i]] for i in rng.choice(len(others), task.passages - 1, False)]
        places = (0, (task.passages - 1) // 2, task.passages - 1)
        for place, at in zip(made, places, strict=True):
            made[place].append("\n\n".join([*filler[:at], texts[best], *filler[at:]]))
    head = main_head(subject)
    subject = subject.fitted([text for place in made.values() for text in place])
    asked = subject.encode(list(data.queries.values()), task, "query", heads=head)
    metrics, own = {}, {}
    for place, documents in made.items():
        found = subject.encode(documents, task, "document", heads=head)
        scores_QQ = subject.model.similarity(asked, found, heads=head)
        own[place] = np.diag(scores_QQ).astype(np.float64)
        runs = {
            name: dict(zip(names, row.tolist(), strict=True))
            for name, row in zip(names, scores_QQ, strict=True)
        }
        each = score_queries(runs, {name: {name: 1.0} for name in names}, [task.ranked])
        metrics[f"{task.ranked}_{place}"] = float(np.mean(each[task.ranked]))
        metrics[f"similarity_{place}"] = float(own[place].mean())
    advantage = own["start"] - own["end"]
    metrics = {"start_advantage": float(advantage.mean()), **metrics}
    columns = {"value": advantage, **own}
    asked_texts = [[text] for text in data.queries.values()]
    sample = Sample.of("mean", "query", names, asked_texts, columns)
    return Scored(metrics, sample, {"p": sign_flip(advantage)})


def length_bias(subject: Subject, task: LengthBias, paths: Paths) -> Scored:
    """Score whether similarity rises with the length of documents that no one judged relevant.

    `length_correlation` is the mean over queries of the rank correlation of words and similarity;
    above 0 long documents are preferred.
    """
    data = judged_sample(subject, task, paths)
    ids, texts = list(data.documents), list(data.documents.values())
    words_N = np.array([word_count(text) for text in texts])
    head = main_head(subject)
    subject = subject.fitted(texts)
    found = subject.corpus(texts, task, head)
    asked = subject.encode(list(data.queries.values()), task, "query", heads=head)
    scores_QN = subject.model.similarity(asked, found, heads=head)
    value, first = [], []
    for scores, name in zip(scores_QN, data.queries, strict=True):
        other = np.array([data.relevant[name].get(document, 0) <= 0 for document in ids])
        value.append(spearman(scores[other], words_N[other]))
        first.append(float(words_N[np.argsort(-scores, kind="stable")[:10]].mean()))
    metrics = {
        "length_correlation": float(np.mean(value)),
        "words_first_10": float(np.mean(first)),
        "words_all": float(words_N.mean()),
    }
    asked_texts = [[text] for text in data.queries.values()]
    columns = {"value": value, "words_first_10": first}
    sample = Sample.of("mean", "query", list(data.queries), asked_texts, columns)
    return Scored(metrics, sample, {"p": sign_flip(value)})
