"""Reading the data sets that tasks are made of: JSON lines, plain or gzipped, in a folder each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.errors import InputError, RecordError

__all__ = ["Retrieval", "read_lines", "read_pairs", "read_retrieval"]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """A corpus, queries, and which documents answer them."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, float]]
    """Gain of each judged document, by query."""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of `path`, or of `path` + ".gz" where that is what there is.

    Raises:
        InputError: neither is there.
        RecordError: a line that is no JSON object, with file and line.
    """
    packed = path.with_name(path.name + ".gz")
    source = path if path.is_file() else packed
    if not source.is_file():
        raise InputError(f"{path} is not there (nor {packed.name}); check the data folder")
    with gzip.open(source, "rt") if source.suffix == ".gz" else source.open() as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise RecordError(f"{source}:{number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise RecordError(f"{source}:{number}: not a JSON object")
            yield record


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Return sentence pairs with their gold similarity (s1, s2, score)."""
    return [(str(r["s1"]), str(r["s2"]), float(r["score"])) for r in read_lines(path)]


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
