"""Reads the data sets of tasks: files of any form that `data.Source` reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedlm.data import read_rows
from embedlm.errors import RecordError
from embedlm.evaluation.suite import RetrievalFields
from embedlm.schema.arguments import short

__all__ = [
    "Judged",
    "number_of",
    "read_beir",
    "read_fields",
    "read_pairs",
    "read_retrieval",
    "records_of",
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
    lacking: int = 0
    """Relevant documents that the corpus lacks; no model finds them, and they count."""

    @property
    def notes(self) -> dict[str, Any]:
        """What a result tells of the data."""
        lacking = {"relevant documents that the corpus lacks": self.lacking}
        told = {"left_out": self.left_out, "not_found": lacking if self.lacking else {}}
        return {name: counts for name, counts in told.items() if counts}


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Return sentence pairs with their gold similarity.

    Their fields are s1 and s2, or sentence1 and sentence2, and score.

    Raises:
        InputError: no such file.
        RecordError: a record without these fields, with file and line.
    """
    pairs = []
    for where, record in records_of(path):
        names = next((pair for pair in _PAIRS if record.keys() >= {*pair, "score"}), None)
        if names is None:
            raise RecordError(
                f"{where}: give the fields s1 and s2 (or sentence1 and sentence2) with sentences "
                f"and score with a number; {_told(record)}"
            )
        first, second = (text_of(record, where, name) for name in names)
        pairs.append((first, second, number_of(record, where, "score")))
    return pairs


def read_fields(path: Path, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield the texts of fields that every record must have.

    Raises:
        InputError: no such file.
        RecordError: a record without one of them, with file and line; or no record.
    """
    for where, record in records_of(path):
        yield tuple(text_of(record, where, name) for name in names)


def records_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a file, of which there must be some, and their places.

    Raises:
        InputError: no such file.
        RecordError: a bad record, with file and line; or no record.
    """
    none = True
    for where, record in read_rows(path):
        none = False
        yield where, record
    if none:
        raise RecordError(f"{path} holds no record; give some")


def read_retrieval(paths: Mapping[str, Path], fields: RetrievalFields) -> Judged:
    """Return a retrieval set.

    Args:
        paths: of corpus, queries and qrels.
        fields: the names of the files' fields; by default BEIR's _id, title, text and q, d, rel.

    Raises:
        InputError: no such file.
        RecordError: a record that cannot be used, an id of two texts or a document with two gains
            for a query, with file and line; documents without text; or no judged document in the
            corpus.
    """
    documents, queries = _documents(paths["corpus"], fields), _queries(paths["queries"], fields)
    gains = _gains(paths["qrels"], fields)
    judged = {document for own in gains.values() for document in own}
    if judged and judged.isdisjoint(documents):
        raise RecordError(
            f"{paths['qrels']}: no judged document (such as {min(judged)!r}) is in "
            f"{paths['corpus']}; the ids must be the same in both files"
        )
    relevant = {
        query: own
        for query, own in gains.items()
        if query in queries and any(gain > 0 for gain in own.values())
    }
    wanted = {d for own in relevant.values() for d, gain in own.items() if gain > 0}
    left_out = {
        "queries without a relevant document": len(queries.keys() - relevant.keys()),
        "judged queries without a text": len(gains.keys() - queries.keys()),
    }
    return Judged(
        documents,
        {query: text for query, text in queries.items() if query in relevant},
        relevant,
        {reason: count for reason, count in left_out.items() if count},
        len(wanted - documents.keys()),
    )


def _documents(path: Path, fields: RetrievalFields) -> dict[str, str]:
    parts = [part for part in (fields.title, fields.text) if part]
    found: dict[str, str] = {}
    seen: dict[str, Any] = {}
    for number, (where, row) in enumerate(read_rows(path)):
        seen.update(row)
        text = " ".join(_as_text(row[part], where, part) for part in parts if row.get(part))
        _keep(found, _id(row, where, fields.document_id, number), text, where)
    if found and seen.keys().isdisjoint(parts):
        raise RecordError(f"{path}: no document has {' or '.join(map(repr, parts))}; {_told(seen)}")
    return found


def _queries(path: Path, fields: RetrievalFields) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, (where, row) in enumerate(read_rows(path)):
        text = text_of(row, where, fields.query)
        _keep(found, _id(row, where, fields.query_id, number), text, where)
    return found


def _keep(found: dict[str, str], id: str, text: str, where: str) -> None:
    """Take a text under its id, which no other text may have."""
    if found.setdefault(id, text) != text:
        raise RecordError(f"{where}: the id {id!r} has another text above; give each its own")


def _gains(path: Path, fields: RetrievalFields) -> dict[str, dict[str, float]]:
    """Return the gain of each judged document, by query."""
    found: dict[str, dict[str, float]] = {}
    for number, (where, row) in enumerate(read_rows(path)):
        query = _id(row, where, fields.judged_query, number)
        document = _id(row, where, fields.judged_document, number)
        gain = 1.0 if fields.gain is None else number_of(row, where, fields.gain)
        if found.setdefault(query, {}).setdefault(document, gain) != gain:
            raise RecordError(
                f"{where}: the document {document!r} has another gain for the query {query!r} "
                "above; leave one of the two out"
            )
    return found


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
    """Return a field that a record must have, as a string; a number or true is one, too."""
    if record.get(name) is None:
        raise RecordError(f"{where}: has no {name!r}; {_told(record)}")
    return _as_text(record[name], where, name)


def _as_text(value: Any, where: str, name: str) -> str:
    if isinstance(value, list | Mapping):
        raise RecordError(f"{where}: {name!r} is {short(value)}; give a text")
    return str(value)


def texts_of(record: Mapping[str, Any], where: str, name: str) -> list[str]:
    """Return a field that must hold a list of texts."""
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RecordError(f"{where}: {name!r} is no list of texts; {_told(record)}")
    return value


def number_of(record: Mapping[str, Any], where: str, name: str) -> float:
    """Return a field that must hold a finite number; true counts as 1 and false as 0."""
    text = text_of(record, where, name)
    try:
        number = float(record[name] if isinstance(record[name], bool) else text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RecordError(f"{where}: {name!r} is {short(text)}, which is no number")
    return number


def _told(fields: Mapping[str, Any]) -> str:
    return f"there are: {', '.join(fields)}" if fields else "the record is empty"
