"""Reads the data sets of tasks: files of any form that `data.Source` reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedlm.data import read_rows
from embedlm.errors import RecordError
from embedlm.evaluation.suite import RetrievalFields

__all__ = [
    "Judged",
    "number_of",
    "read_beir",
    "read_fields",
    "read_pairs",
    "read_retrieval",
    "text_of",
    "texts_of",
]

_PAIRS = (("s1", "s2"), ("sentence1", "sentence2"))


@dataclass(frozen=True, slots=True)
class Judged:
    """A corpus, queries, and which documents answer them."""

    documents: dict[str, str]
    queries: dict[str, str]
    """Those with a relevant document."""
    relevant: dict[str, dict[str, float]]
    """Gain of each judged document, by query."""
    left_out: dict[str, int] = field(default_factory=dict)
    """How many queries are not scored, by the reason."""


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
        first, second = (text_of(record, where, name) for name in names)
        pairs.append((first, second, number_of(record, where, "score")))
    return pairs


def read_fields(path: Path, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield the texts of fields that every record must have.

    Raises:
        InputError: no such file.
        RecordError: a record without one of them, with file and line.
    """
    for where, record in read_rows(path):
        yield tuple(text_of(record, where, name) for name in names)


def read_retrieval(paths: Mapping[str, Path], fields: RetrievalFields) -> Judged:
    """Return a retrieval set.

    Args:
        paths: of corpus, queries and qrels.
        fields: the names of the files' fields; by default BEIR's _id, title, text and q, d, rel.
    """
    names = fields
    documents = {
        _id(row, where, names.document_id, number): " ".join(
            str(row[part]) for part in (names.title, names.text) if part and row.get(part)
        )
        for number, (where, row) in enumerate(read_rows(paths["corpus"]))
    }
    queries = {
        _id(row, where, names.query_id, number): text_of(row, where, names.query)
        for number, (where, row) in enumerate(read_rows(paths["queries"]))
    }
    gains: dict[str, dict[str, float]] = {}
    for number, (where, row) in enumerate(read_rows(paths["qrels"])):
        query = _id(row, where, names.judged_query, number)
        document = _id(row, where, names.judged_document, number)
        gain = 1.0 if names.gain is None else number_of(row, where, names.gain)
        gains.setdefault(query, {})[document] = gain
    relevant = {
        query: judged
        for query, judged in gains.items()
        if query in queries and any(gain > 0 for gain in judged.values())
    }
    left_out = {
        "queries without a relevant document": len(queries.keys() - relevant.keys()),
        "judged queries without a text": len(gains.keys() - queries.keys()),
    }
    return Judged(
        documents,
        {query: text for query, text in queries.items() if query in relevant},
        relevant,
        {reason: count for reason, count in left_out.items() if count},
    )


def read_beir(folder: Path, split: str | None = None) -> Judged:
    """Return a retrieval set of a folder in BEIR's fields.

    Args:
        folder: holds corpus, queries and qrels.
        split: part of the files' names, e.g. "validation"; None where there is only one.
    """
    end = f"_{split}.jsonl" if split else ".jsonl"
    names = {"corpus": "corpus.jsonl", "queries": f"queries{end}", "qrels": f"qrels{end}"}
    return read_retrieval({part: folder / name for part, name in names.items()}, RetrievalFields())


def _id(record: Mapping[str, Any], where: str, name: str | None, number: int) -> str:
    """Return a record's id: its field, or its number where it has none."""
    return str(number) if name is None else text_of(record, where, name)


def text_of(record: Mapping[str, Any], where: str, name: str) -> str:
    """Return a field that a record must have, as a string."""
    if record.get(name) is None:
        raise RecordError(f"{where}: has no {name!r}; {_fields(record)}")
    return str(record[name])


def texts_of(record: Mapping[str, Any], where: str, name: str) -> list[str]:
    """Return a field that must hold a list of texts."""
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RecordError(f"{where}: {name!r} is no list of texts; {_fields(record)}")
    return value


def number_of(record: Mapping[str, Any], where: str, name: str) -> float:
    """Return a field that must hold a number."""
    text = text_of(record, where, name)
    try:
        return float(text)
    except ValueError as error:
        raise RecordError(f"{where}: {name!r} is {text!r}, which is no number") from error


def _fields(record: Mapping[str, Any]) -> str:
    return f"there are: {', '.join(record)}" if record else "the record is empty"
