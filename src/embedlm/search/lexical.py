"""BM25 as two sparse vectors, whose dot product is the score, so that any store can hold it.

    score(q, d) = sum over terms t of q:  idf(t) * tf / (tf + k1 (1 - b + b length / average))
    idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5))

Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, with Lucene's idf and without
the constant factor k1 + 1. The document's vector holds what depends on the document, the query's
holds idf. So counts may change without a new vector; only a new average length asks for new ones.

Shapes: n texts, V buckets.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix

from embedlm.data.words import runs_of
from embedlm.errors import InputError, closest

__all__ = ["ANALYZERS", "BUCKETS", "DRIFT", "Bm25", "terms_of"]

BUCKETS = 1 << 22
"""Terms are numbered by a hash: of 30,000 terms, about 1 in 140 shares its number with another."""
K1, B = 1.2, 0.75
DRIFT = 0.2
"""Relative change of the average length at which documents get new vectors."""
ANALYZERS = ("english", "plain")
_STOP = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "if",
        "in",
        "into",
        "is",
        "it",
        "no",
        "not",
        "of",
        "on",
        "or",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "will",
        "with",
    ]
)
"""Lucene's list for English."""


def terms_of(text: str, analyzer: str = "english", *, query: bool = False) -> list[str]:
    """Return a text's terms: words; two signs at a time where no blanks are written.

    `english` leaves out Lucene's stop words and takes off the ending of a plural (Harman, How
    effective is suffixing?, 1991); `plain` does neither. A text also has each sign as a term, which
    a query has only where it stands alone: what is asked for may be one sign of a longer word.

    Args:
        text: of a document or a query.
        analyzer: english or plain.
        query: whether it is a query.
    """
    if analyzer not in ANALYZERS:
        raise InputError(
            f"analyzer {analyzer!r} is not known; allowed: {', '.join(ANALYZERS)}."
            + closest(analyzer, list(ANALYZERS))
        )
    found: list[str] = []
    for run in runs_of(text):
        if not isinstance(run, str):
            found += [one + two for one, two in pairwise(run)]
            if not query or len(run) == 1:
                found += run
        elif analyzer == "plain":
            found.append(run)
        elif run not in _STOP:
            found.append(_singular(run))
    return found


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def bucket(term: str) -> int:
    """Return a term's number, the same on every machine."""
    return zlib.crc32(term.encode("utf-8")) % BUCKETS


def counts(text: str, analyzer: str = "english", *, query: bool = False) -> Counter[int]:
    """Return how often each term's number stands in a text; see `terms_of`."""
    return Counter(map(bucket, terms_of(text, analyzer, query=query)))


@dataclass(frozen=True, slots=True)
class Bm25:
    """The statistics that vectors are made with."""

    average: float
    """Terms of a document on average, at the time when its vectors were made."""
    analyzer: str = "english"

    def documents(self, texts: Sequence[str]) -> csr_matrix:
        """Return the vectors of documents, (n, V)."""
        rows = []
        for text in texts:
            found = counts(text, self.analyzer)
            length = K1 * (1 - B + B * sum(found.values()) / max(self.average, 1e-9))
            rows.append({term: tf / (tf + length) for term, tf in found.items()})
        return _matrix(rows)

    def query(self, text: str, frequency: Mapping[int, int], total: int) -> csr_matrix:
        """Return the vector of a query, (1, V).

        Args:
            text: the query.
            frequency: in how many documents the terms stand.
            total: the number of documents.
        """
        weights = {}
        for term, count in counts(text, self.analyzer, query=True).items():
            df = frequency.get(term, 0)
            weights[term] = count * math.log(1 + (total - df + 0.5) / (df + 0.5))
        return _matrix([weights])

    def drifted(self, average: float) -> bool:
        """Tell whether documents need new vectors, since their average length has changed."""
        return abs(average - self.average) > DRIFT * max(self.average, 1e-9)


def _matrix(rows: Iterable[Mapping[int, float]]) -> csr_matrix:
    data: list[float] = []
    columns: list[int] = []
    starts = [0]
    for row in rows:
        for column in sorted(row):
            columns.append(column)
            data.append(row[column])
        starts.append(len(data))
    parts = (np.array(data, np.float32), np.array(columns, np.int32), np.array(starts, np.int32))
    return csr_matrix(parts, shape=(len(starts) - 1, BUCKETS))
