"""Reading the data sets that tasks are made of: JSON lines, plain or gzipped, in a folder each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedlm.data import read_lines

__all__ = ["Retrieval", "read_labelled", "read_pairs", "read_retrieval"]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """A corpus, queries, and which documents answer them."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, float]]
    """Gain of each judged document, by query."""


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Return sentence pairs with their gold similarity (s1, s2, score)."""
    return [(str(r["s1"]), str(r["s2"]), float(r["score"])) for r in read_lines(path)]


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """Return texts with their class (text, label)."""
    return [(str(r["text"]), str(r["label"])) for r in read_lines(path)]


def read_retrieval(folder: Path, split: str | None = None) -> Retrieval:
    """Return a retrieval set in BEIR's fields: _id, title, text; q, d, rel.

    Args:
        folder: holds corpus, queries and qrels.
        split: part of the files' names, e.g. "validation"; None where there is only one.
    """
    end = f"_{split}.jsonl" if split else ".jsonl"
    documents = {
        str(r["_id"]): " ".join(part for part in (r.get("title"), r.get("text")) if part)
        for r in read_lines(folder / "corpus.jsonl")
    }
    queries = {str(r["_id"]): str(r["text"]) for r in read_lines(folder / f"queries{end}")}
    relevant: dict[str, dict[str, float]] = {}
    for record in read_lines(folder / f"qrels{end}"):
        if str(record["q"]) in queries:
            relevant.setdefault(str(record["q"]), {})[str(record["d"])] = float(record["rel"])
    return Retrieval(documents, {q: t for q, t in queries.items() if q in relevant}, relevant)
