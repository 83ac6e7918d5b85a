"""Tasks in which queries order documents: retrieval from a corpus, and re-ranking of candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.data import read_rows
from embedlm.data.words import first_words
from embedlm.embedder import Embedder
from embedlm.errors import RecordError
from embedlm.evaluation.metrics import best_documents, score_queries
from embedlm.evaluation.readers import Judged, read_retrieval, text_of, texts_of
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.subject import Scored, Subject, drawn
from embedlm.evaluation.suite import Reranking, Retrieval
from embedlm.schema.recipe import Sparse
from embedlm.search.fusion import fuse

__all__ = ["part_of", "ranked_by_head", "reranking", "retrieval"]

DEPTH = 1000
"""Documents kept for each query."""
_BLOCK = 256
"""Queries that are compared with the corpus at once."""

Runs = dict[str, dict[str, float]]
Paths = Mapping[str, Path]


def retrieval(subject: Subject, task: Retrieval, paths: Paths) -> Scored:
    """Score the order in which each query puts the documents of a corpus.

    Every head of the recipe is scored, and the fusion of all where some are sparse and some not.
    The main metrics are those of the fusion, or else of the first head.
    """
    data = read_retrieval(paths, task.fields)
    if not data.queries:
        raise RecordError(
            f"{paths['qrels']}: no query of {paths['queries']} has a relevant document here; the "
            "ids must be the same in both files"
        )
    names = list(data.queries)
    names = [names[i] for i in drawn(len(names), task, SEED)]
    documents = _searched(data, names, task.documents)
    ids, texts = list(documents), list(documents.values())
    if subject.words is not None:
        texts = [first_words(text, subject.words) for text in texts]
    subject = subject.fitted(texts)
    runs = _runs(subject, task, ids, texts, {name: data.queries[name] for name in names})
    if task.ignore_identical_ids:
        runs = {
            head: {q: {d: s for d, s in run.items() if d != q} for q, run in by_query.items()}
            for head, by_query in runs.items()
        }
    judged = {name: data.relevant[name] for name in names}
    main = "hybrid" if "hybrid" in runs else next(iter(runs))
    each = {head: score_queries(run, judged, task.metrics) for head, run in runs.items()}
    metrics = {name: float(np.mean(values)) for name, values in each[main].items()}
    for head, values_of in each.items():
        metrics |= {f"{head}_{name}": float(np.mean(v)) for name, v in values_of.items()}
    relevant = [[d for d, gain in judged[name].items() if gain > 0] for name in names]
    sample = Sample.of(
        "mean",
        "query",
        names,
        [[data.queries[name]] for name in names],
        {"value": each[main][task.metric], **each[main]},
        relevant,
    )
    return Scored(metrics, sample, data.notes)


def _searched(data: Judged, queries: Sequence[str], count: int | None) -> dict[str, str]:
    """Return the documents that are searched: all, or those judged and every n-th other."""
    if count is None or count >= len(data.documents):
        return data.documents
    judged = {document for query in queries for document in data.relevant[query]}
    others = [document for document in data.documents if document not in judged]
    free = max(0, count - len(data.documents.keys() & judged))
    kept = judged | {others[i * len(others) // free] for i in range(free)}
    return {name: text for name, text in data.documents.items() if name in kept}


def _runs(
    subject: Subject,
    task: Retrieval,
    ids: Sequence[str],
    texts: Sequence[str],
    queries: Mapping[str, str],
) -> dict[str, Runs]:
    """Return the best documents of each query, by the head that found them."""
    documents = subject.corpus(texts, task)
    asked = subject.encode(list(queries.values()), task, "query")
    return ranked_by_head(subject.model, asked, documents, ids, list(queries))


def ranked_by_head(
    model: Embedder,
    asked: Any,
    documents: Any,
    ids: Sequence[str],
    names: Sequence[str],
    depth: int = DEPTH,
) -> dict[str, Runs]:
    """Return the best documents of each query, by the head that found them, or "hybrid".

    Args:
        model: compares them.
        asked: the vectors of the queries, as `encode` returned them.
        documents: those of the documents.
        ids: of the documents.
        names: of the queries.
        depth: documents that are kept for each.
    """
    heads: list[str] = [head.kind for head in model.recipe.heads]
    fused = len(heads) > 1 and any(isinstance(head, Sparse) for head in model.recipe.heads)
    runs: dict[str, Runs] = {name: {} for name in (*heads, *(["hybrid"] if fused else []))}
    for start in range(0, len(names), _BLOCK):
        block = slice(start, start + _BLOCK)
        best = {
            head: best_documents(
                model.similarity(part_of(asked, block, head), documents, heads=[head]), ids, depth
            )
            for head in heads
        }
        if fused:
            best["hybrid"] = [
                fuse(parts, depth=depth) for parts in zip(*best.values(), strict=True)
            ]
        for head, found in best.items():
            runs[head] |= dict(zip(names[block], found, strict=True))
    return runs


def part_of(vectors: Any, rows: Any, head: str | None = None) -> Any:
    """Return some rows of what `encode` returned.

    Args:
        vectors: an array, or `Embeddings`.
        rows: a slice or a list of numbers.
        head: whose rows alone are taken; None: those of all heads.
    """
    from embedlm.readout.embeddings import Embeddings

    if not isinstance(vectors, Embeddings):
        return vectors[rows]
    parts: dict[str, Any] = {}
    for name in vectors.heads if head is None else (head,):
        whole = vectors[name]
        listed = isinstance(whole, list) and not isinstance(rows, slice)
        parts[name] = [whole[i] for i in rows] if listed else whole[rows]
    return Embeddings(**parts)


def reranking(subject: Subject, task: Reranking, paths: Paths) -> Scored:
    """Score the order in which each query puts its own candidates.

    Only queries with candidates of both kinds count; the others would score 1 or 0 whatever the
    model does.
    """
    queries, runs, judged = _candidates(paths["queries"], task)
    left_out = {name for name in judged if len(set(judged[name].values())) < 2}
    names = [name for name in queries if name not in left_out]
    if not names:
        raise RecordError(f"{paths['queries']}: no query has candidates of both kinds")
    names = [names[i] for i in drawn(len(names), task, SEED)]
    texts = list(dict.fromkeys(text for name in names for text in runs[name]))
    subject = subject.fitted([*(queries[name] for name in names), *texts])
    where = {text: row for row, text in enumerate(texts)}
    documents = subject.encode(texts, task, "document", heads=["dense"])
    asked = subject.encode([queries[name] for name in names], task, "query", heads=["dense"])
    found: Runs = {}
    for row, name in enumerate(names):
        rows = [where[text] for text in runs[name]]
        scores = subject.model.similarity(asked[row : row + 1], documents[rows])[0]
        found[name] = {_hashed(t): float(s) for t, s in zip(runs[name], scores, strict=True)}
    gains = {name: {_hashed(t): g for t, g in judged[name].items()} for name in names}
    each = score_queries(found, gains, task.metrics)
    metrics = {name: float(np.mean(values)) for name, values in each.items()}
    columns = {"value": each[task.metric], **each}
    sample = Sample.of("mean", "query", names, [[queries[name]] for name in names], columns)
    notes = {"left_out": {"queries without candidates of both kinds": len(left_out)}}
    return Scored(metrics, sample, notes if left_out else {})


def _candidates(
    path: Path, task: Reranking
) -> tuple[dict[str, str], dict[str, list[str]], dict[str, dict[str, float]]]:
    """Return queries, their candidates and the gains of these, by the query's number."""
    queries, candidates, judged = {}, {}, {}
    for number, (where, record) in enumerate(read_rows(path)):
        name = str(number)
        positive = texts_of(record, where, task.fields.positive)
        negative = texts_of(record, where, task.fields.negative)
        queries[name] = text_of(record, where, task.fields.query)
        # A text that is listed as both is an answer.
        judged[name] = {**dict.fromkeys(negative, 0.0), **dict.fromkeys(positive, 1.0)}
        candidates[name] = list(judged[name])
    return queries, candidates, judged


def _hashed(text: str) -> str:
    """Return an id that says nothing of relevance: equal scores are ordered by it."""
    return hashlib.sha256(text.encode()).hexdigest()
