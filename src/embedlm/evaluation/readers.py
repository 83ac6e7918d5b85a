"""Reads the data sets of tasks: files of any form that `data.Source` reads, in a folder each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.data import read_rows
from embedlm.errors import RecordError

__all__ = ["Retrieval", "read_labelled", "read_pairs", "read_retrieval"]


_PAIRS = (("s1", "s2"), ("sentence1", "sentence2"))


@dataclass(frozen=True, slots=True)
class Retrieval:
    """A corpus, queries, and which documents answer them."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, float]]
    """Gain of each judged document, by query."""


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Return sentence pairs with their gold similarity.

    Their fields are s1 and s2, or sentence1 and sentence2, and score.

    Raises:
        InputError: no such file.
        RecordError: a record without these fields, with file and line.
    """
    pairs = []
    for where, record in read_rows(path):
        names = next((pair for pair in _PAIRS if record.keys() >= {*pair, "score"}), None)
        if names is None:
            raise RecordError(
                f"{where}: give the fields s1 and s2 (or sentence1 and sentence2) with sentences "
                f"and score with a number; {_fields(record)}"
            )
        first, second = (_text(record, where, name) for name in names)
        pairs.append((first, second, _number(record, where, "score")))
    return pairs


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """Return texts with their class (text, label)."""
    return [
        (_text(record, where, "text"), _text(record, where, "label"))
        for where, record in read_rows(path)
    ]


def read_retrieval(folder: Path, split: str | None = None) -> Retrieval:
    """Return a retrieval set in BEIR's fields: _id, title, text; q, d, rel.

    Args:
        folder: holds corpus, queries and qrels.
        split: part of the files' names, e.g. "validation"; None where there is only one.
    """
    end = f"_{split}.jsonl" if split else ".jsonl"
    documents = {
        _text(record, where, "_id"): " ".join(
            str(part) for part in (record.get("title"), record.get("text")) if part
        )
        for where, record in read_rows(folder / "corpus.jsonl")
    }
    queries = {
        _text(record, where, "_id"): _text(record, where, "text")
        for where, record in read_rows(folder / f"queries{end}")
    }
    relevant: dict[str, dict[str, float]] = {}
    for where, record in read_rows(folder / f"qrels{end}"):
        query = _text(record, where, "q")
        if query in queries:
            gain = _number(record, where, "rel")
            relevant.setdefault(query, {})[_text(record, where, "d")] = gain
    return Retrieval(documents, {q: t for q, t in queries.items() if q in relevant}, relevant)


def _text(record: Mapping[str, Any], where: str, name: str) -> str:
    """Return a field that a record must have, as a string."""
    if record.get(name) is None:
        raise RecordError(f"{where}: has no {name!r}; {_fields(record)}")
    return str(record[name])


def _number(record: Mapping[str, Any], where: str, name: str) -> float:
    text = _text(record, where, name)
    try:
        return float(text)
    except ValueError as error:
        raise RecordError(f"{where}: {name!r} is {text!r}, which is no number") from error


def _fields(record: Mapping[str, Any]) -> str:
    return f"there are: {', '.join(record)}" if record else "the record is empty"
