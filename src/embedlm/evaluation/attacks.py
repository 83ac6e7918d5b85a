"""Documents that answer nothing and are written to be found.

The success rate at k is the share of queries that have such a document among the first k.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.data.words import first_words
from embedlm.errors import RecordError
from embedlm.evaluation.collection import Collection, collected, main_head, query_sample
from embedlm.evaluation.probes import Attack
from embedlm.evaluation.ranking_tasks import part_of
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.subject import Scored, Subject

__all__ = ["attack"]

DEPTHS = (5, 10, 20, 50)
_WORD = re.compile(r"[a-z]{4,}")
_VOCABULARY = 1000
"""The corpus's most frequent words, from which a greedy attack takes its own."""
_BASE = 30
"""Words of the document that a greedy attack lengthens."""

Scores = npt.NDArray[np.float32]


def attack(subject: Subject, task: Attack, paths: Mapping[str, Path]) -> Scored:
    """Score how often a document that answers nothing reaches the first k places of a query.

    Each query has its own document of the corpus, drawn by seed among those that are not judged
    for it, with each of the task's texts before it. `none` is the document as it is. `greedy` adds
    words of the corpus that the query has not, one by one, each the one that brings the document
    closest to the query.
    """
    collection = collected(subject, task, paths)
    head = main_head(subject)
    names, texts = list(collection.queries), list(collection.queries.values())
    base = [collection.documents[document] for document in _unjudged(collection, paths["corpus"])]
    asked = collection.encoded(texts, heads=head)
    corpus_QN = subject.model.similarity(asked, collection.vectors, heads=head)
    written = {"none": base}
    for name, template in task.texts.items():
        written[name] = [
            f"{template.replace('{query}', query)}\n{document}"
            for query, document in zip(texts, base, strict=True)
        ]
    scores = {name: _own(collection, asked, some, head) for name, some in written.items()}
    if task.greedy_steps:
        short = [first_words(document, _BASE) for document in base]
        scores["greedy"] = _greedy(collection, task, asked, short, head)
    ranks = {name: 1 + (corpus_QN > own[:, None]).sum(axis=1) for name, own in scores.items()}
    tried = [name for name in ranks if name != "none"]
    metrics: dict[str, float] = {}
    for depth in DEPTHS:
        each = {name: float((rank <= depth).mean()) for name, rank in ranks.items()}
        metrics[f"asr@{depth}"] = float(np.mean([each[name] for name in tried]))
        metrics |= {f"{name}_asr@{depth}": share for name, share in each.items()}
    depth = int(task.metric.partition("@")[2])
    value = np.mean([ranks[name] <= depth for name in tried], axis=0)
    columns = {f"rank_{name}": rank for name, rank in ranks.items()}
    return Scored(metrics, query_sample(collection, value, columns), {"queries": len(names)})


def _unjudged(collection: Collection, path: Path) -> list[str]:
    """Return a document for each query that is not judged for it."""
    rng = np.random.default_rng(SEED)
    chosen = []
    for name in collection.queries:
        others = [d for d in collection.documents if d not in collection.relevant[name]]
        if not others:
            raise RecordError(f"{path}: all documents are judged for the query {name}")
        chosen.append(others[int(rng.integers(len(others)))])
    return chosen


def _own(
    collection: Collection, asked: Any, documents: Sequence[str], head: list[str]
) -> npt.NDArray[np.float32]:
    """Return the score of each query with its own document."""
    found = collection.subject.encode(list(documents), collection.task, "document", heads=head)
    return collection.subject.model.similarity_pairwise(asked, found, heads=head)


def _greedy(
    collection: Collection, task: Attack, asked: Any, base: Sequence[str], head: list[str]
) -> Scores:
    """Return the score of each query with its document after a few words were added to it."""
    model, queries = collection.subject.model, list(collection.queries.values())
    counted = Counter(
        word for text in collection.documents.values() for word in _WORD.findall(text.lower())
    )
    common = [word for word, _ in counted.most_common(_VOCABULARY)]
    near_QV = model.similarity(
        asked,
        collection.subject.encode(common, collection.task, "document", heads=head),
        heads=head,
    )
    words = []
    for query, near in zip(queries, near_QV, strict=True):
        own = set(_WORD.findall(query.lower()))
        order = [common[i] for i in np.argsort(-near, kind="stable").tolist()]
        words.append([word for word in order if word not in own][: task.candidates])
    current, best = list(base), _own(collection, asked, base, head)
    for _ in range(task.greedy_steps):
        tried = [f"{text} {word}" for text, own in zip(current, words, strict=True) for word in own]
        owner = [row for row, own in enumerate(words) for _ in own]
        found = collection.subject.encode(tried, collection.task, "document", heads=head)
        scores = model.similarity_pairwise(part_of(asked, owner), found, heads=head)
        for row, text, score in zip(owner, tried, scores, strict=True):
            if score > best[row]:
                best[row], current[row] = score, text
    return best
