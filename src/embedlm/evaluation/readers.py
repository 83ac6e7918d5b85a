"""Reads the data sets of tasks: files of any form that `data.Source` reads, in a folder each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.data import read_rows
from embedlm.errors import RecordError

__all__ = ["Retrieval", "read_labelled", "read_pairs", "read_retrieval"]


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
    for place, record in read_rows(path):
        first, second = (_text(record, place, f"s{n}", f"sentence{n}") for n in (1, 2))
        pairs.append((first, second, _number(record, place, "score")))
    return pairs


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """Return texts with their class (text, label)."""
    return [
        (_text(record, place, "text"), _text(record, place, "label"))
        for place, record in read_rows(path)
    ]


def read_retrieval(folder: Path, split: str | None = None) -> Retrieval:
    """Return a retrieval set in BEIR's fields: _id, title, text; q, d, rel.

    Args:
        folder: holds corpus, queries and qrels.
        split: part of the files' names, e.g. "validation"; None where there is only one.
    """
    end = f"_{split}.jsonl" if split else ".jsonl"
    documents = {
        _text(record, place, "_id"): " ".join(
            str(part) for part in (record.get("title"), record.get("text")) if part
        )
        for place, record in read_rows(folder / "corpus.jsonl")
    }
    queries = {
        _text(record, place, "_id"): _text(record, place, "text")
        for place, record in read_rows(folder / f"queries{end}")
    }
    relevant: dict[str, dict[str, float]] = {}
    for place, record in read_rows(folder / f"qrels{end}"):
        query = _text(record, place, "q")
        if query in queries:
            gain = _number(record, place, "rel")
            relevant.setdefault(query, {})[_text(record, place, "d")] = gain
    return Retrieval(documents, {q: t for q, t in queries.items() if q in relevant}, relevant)


def _text(record: Mapping[str, Any], place: str, *names: str) -> str:
    """Return the first of these fields that a record has, as a string."""
    for name in names:
        if record.get(name) is not None:
            return str(record[name])
    raise RecordError(
        f"{place}: has no field {' or '.join(map(repr, names))}; there are: "
        f"{', '.join(record) or 'none'}"
    )


def _number(record: Mapping[str, Any], place: str, name: str) -> float:
    text = _text(record, place, name)
    try:
        return float(text)
    except ValueError as error:
        raise RecordError(f"{place}: {name!r} is {text!r}, which is no number") from error
