"""Candidates: each model in each form, lexical search, and both together, with what they cost.

Shapes: N documents, Q queries, D width.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import vstack

from embedlm.embedder import Embedder
from embedlm.encode.identity import revision
from embedlm.encode.precision import quantize
from embedlm.evaluation.metrics import best_documents, score_queries
from embedlm.jobs.atomic import disk_errors, write_file
from embedlm.readout.quantized import in_floats
from embedlm.readout.similarity import DENSE, normalize, sparse_dot
from embedlm.search import fuse
from embedlm.search.lexical import Bm25, counts
from embedlm.studies.advise.corpus import Corpus

__all__ = ["METRIC", "Candidate", "ModelVectors", "candidates", "lexical", "vectors_of"]

METRIC = "ndcg@10"
DEPTH = 100
WIDTHS = (1024, 512, 256, 128, 64)
PRECISIONS = ("float32", "int8", "binary")
_TIMED = 20
"""Queries whose time is taken; the median counts."""

Floats = npt.NDArray[np.float64]
Runs = list[dict[str, float]]


@dataclass(frozen=True)
class Candidate:
    """A way to search the corpus."""

    label: str
    model: str | None
    """None: lexical search alone."""
    mode: str
    """dense, bm25 or hybrid."""
    dim: int | None
    precision: str | None
    scores: list[float]
    """nDCG@10 of each query."""
    latency_ms: float
    """Of one query: embedding and searching, the median."""
    memory_mb: float
    """Weights and the vectors of all documents."""
    bytes: float
    """Of a document."""
    whole: bool = True
    """Whether vectors keep their width."""

    @property
    def score(self) -> float:
        """The mean over queries."""
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class ModelVectors:
    """A model's vectors of the corpus, with the time that a query takes."""

    name: str
    documents_ND: npt.NDArray[np.float32]
    queries_QD: npt.NDArray[np.float32]
    query_ms: float
    weights_mb: float
    similarity: str
    normalized: bool


def vectors_of(model: Embedder, name: str, corpus: Corpus, work: Path) -> ModelVectors:
    """Return a model's vectors, which are kept in the work folder and not computed again."""
    facts = json.dumps([revision(model), corpus.digest])
    file = work / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.npz"
    kept = _kept(file)
    if kept is not None:
        documents, queries = kept
    else:
        documents = model.encode(corpus.texts, role="document", heads=["dense"])
        queries = model.encode(corpus.queries, role="query", heads=["dense"])
        with disk_errors(file, "Make room, or name another folder (work)"):
            work.mkdir(parents=True, exist_ok=True)
            write_file(
                file, lambda f: np.savez(f, documents=documents, queries=queries), shared=True
            )
    weights = {id(w): w for w in model.backbone.network.parameters()}.values()
    return ModelVectors(
        name,
        documents,
        queries,
        _query_time(model, corpus.queries),
        sum(w.numel() * w.element_size() for w in weights) / 2**20,
        model.recipe.similarity,
        model.recipe.normalize,
    )


def _kept(file: Path) -> tuple[Any, Any] | None:
    """Return the vectors of an earlier run; None: there are none, or the file is damaged."""
    try:
        with np.load(file, allow_pickle=False) as found:
            return found["documents"], found["queries"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _query_time(model: Embedder, queries: Sequence[str]) -> float:
    """Return the median milliseconds in which one query is embedded."""
    some = list(queries[:_TIMED])
    model.encode(some[:1], role="query", heads=["dense"])  # the first one warms up
    return _median(lambda i: model.encode([some[i]], role="query", heads=["dense"]), len(some))


def _median(run: Callable[[int], object], count: int) -> float:
    taken = []
    for i in range(count):
        start = time.perf_counter()
        run(i)
        taken.append(1000 * (time.perf_counter() - start))
    return float(np.median(taken))


Search = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def _search_time(search: Search, queries_QD: npt.NDArray[np.float32]) -> float:
    """Return the median milliseconds in which one query's vector is compared with all documents."""
    count = min(_TIMED, len(queries_QD))
    return _median(lambda i: search(queries_QD[i : i + 1]).argmax(), count)


def candidates(
    own: ModelVectors, corpus: Corpus, words: tuple[Runs, float, float]
) -> Iterator[Candidate]:
    """Yield a model's candidates: each width and precision, and with lexical search.

    Args:
        own: its vectors.
        corpus: documents and queries.
        words: the runs of lexical search, its milliseconds, and its bytes a document.
    """
    runs, words_ms, words_bytes = words
    width = own.documents_ND.shape[1]
    for dim in (width, *(w for w in WIDTHS if w < width)):
        for precision in PRECISIONS:
            search, size = _form(own, dim, precision)
            scores = search(own.queries_QD)
            found = best_documents(scores, corpus.ids, DEPTH)
            taken = own.query_ms + _search_time(search, own.queries_QD)
            form = f"{dim}" if precision == "float32" else f"{dim} {precision}"
            cost = own.weights_mb + size * len(corpus.ids) / 2**20
            yield Candidate(
                f"{own.name}, {form}",
                own.name,
                "dense",
                dim,
                precision,
                _scored(found, corpus),
                taken,
                cost,
                size,
                dim == width,
            )
            if dim == width:
                mixed = [fuse(pair) for pair in zip(found, runs, strict=True)]
                yield Candidate(
                    f"{own.name}, {form} + bm25",
                    own.name,
                    "hybrid",
                    dim,
                    precision,
                    _scored(mixed, corpus),
                    taken + words_ms,
                    cost + words_bytes * len(corpus.ids) / 2**20,
                    size + words_bytes,
                )


def _form(own: ModelVectors, dim: int, precision: str) -> tuple[Search, float]:
    """Return a function that scores all documents for queries, and the bytes of a document."""
    score = DENSE[own.similarity]

    def cut(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        short = vectors[:, :dim]
        return normalize(short) if own.normalized and dim < vectors.shape[1] else short

    documents: Any = cut(own.documents_ND)
    if precision == "float32":
        return lambda q: score(cut(q), documents), 4.0 * dim
    calibration = documents if precision == "int8" else None
    packed: Any = quantize(documents, precision, calibration=calibration)
    plain = in_floats(packed)
    if precision == "int8":
        return lambda q: score(cut(q), plain), float(dim)
    return lambda q: score(np.where(cut(q) > 0, 1, -1), plain), float(packed.shape[1])


def _scored(found: Sequence[Mapping[str, float]], corpus: Corpus) -> list[float]:
    names = [str(i) for i in range(len(found))]
    each = score_queries(
        dict(zip(names, map(dict, found), strict=True)),
        dict(zip(names, corpus.answers, strict=True)),
        [METRIC],
    )
    return [float(value) for value in each[METRIC]]


def lexical(corpus: Corpus) -> tuple[Candidate, tuple[Runs, float, float]]:
    """Return BM25 as a candidate, and its runs, milliseconds and bytes a document."""
    each = [counts(text) for text in corpus.texts]
    average = float(np.mean([sum(own.values()) for own in each]))
    frequency: Counter[int] = Counter()
    for own in each:
        frequency.update(own.keys())
    model = Bm25(average)
    documents = model.documents(corpus.texts)
    total = len(corpus.texts)
    asked = vstack([model.query(query, frequency, total) for query in corpus.queries]).tocsr()
    runs = best_documents(sparse_dot(asked, documents), corpus.ids, DEPTH)
    size = documents.nnz * 8 / total
    taken = _median(
        lambda i: sparse_dot(model.query(corpus.queries[i], frequency, total), documents),
        min(_TIMED, len(corpus.queries)),
    )
    scores, memory = _scored(runs, corpus), size * total / 2**20
    found = Candidate("bm25", None, "bm25", None, None, scores, taken, memory, size)
    return found, (runs, taken, size)
