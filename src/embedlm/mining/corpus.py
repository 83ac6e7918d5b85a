"""Passages and records as a job reads them: once from their source, then from its work folder.

Passages with one text (white space, case and forms of characters apart) are one passage, so that a
copy of a positive under another id is the positive itself, and no negative stands in a list twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedlm.data import Document, Source, TrainingRecord, training_records
from embedlm.data.records import passage_id, titled
from embedlm.data.rows import shortened, unwritable
from embedlm.data.training_record import read_training_record
from embedlm.errors import InputError, RecordError, closest
from embedlm.jobs import Reject
from embedlm.mining.lines import Lines, text_key, write_lines
from embedlm.schema.arguments import short

__all__ = ["Corpus", "PassageIndex", "RecordFile", "prepare_corpus", "prepare_records"]

_TEXTS = ("text", "passage", "document", "document_text", "contents", "content")
"""Fields that hold a passage's text, where the caller names none."""

Rows = str | Path | Iterable[Any]
"""A file, or values: texts, objects with fields, or (passages) none but those of the records."""


@dataclass(slots=True)
class PassageIndex:
    """Where passages stand."""

    by_text: dict[bytes, int] = field(default_factory=dict)
    by_text_alone: dict[bytes, list[int]] = field(default_factory=dict)
    """Passages with a title, by their text without it: records often leave titles out."""
    by_id: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    """Passages whose text an earlier one has."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The distinct passages, in the order of their source."""

    lines: Lines
    """`{"id": ..., "text": ...}` of each."""
    index: PassageIndex

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, place: int) -> str:
        """Return a passage's text."""
        return str(self.lines[place]["text"])

    def document(self, place: int) -> Document:
        """Return a passage with its id."""
        line = self.lines[place]
        return Document(line["text"], line["id"])

    def places_of(self, document: Document) -> list[int]:
        """Return where a document of a record is in the corpus: by its text, then by its id."""
        key = text_key(document.text)
        found = [self.index.by_text[key]] if key in self.index.by_text else []
        found += self.index.by_text_alone.get(key, [])
        if document.id is not None and document.id in self.index.by_id:
            found.append(self.index.by_id[document.id])
        return list(dict.fromkeys(found))


def prepare_corpus(
    rows: Rows,
    folder: Path,
    rejects: list[Reject] | None,
    text_field: str | None = None,
    empty: list[Reject] | None = None,
) -> Corpus:
    """Read passages into a folder.

    Args:
        rows: a file, or passages as texts or objects with text, title and id.
        folder: where they are kept.
        rejects: takes passages that cannot be used; None: the first one is an error.
        text_field: the field that holds a passage's text; None: one of the common names.
        empty: takes passages without text; None: they are as others that cannot be used.

    Raises:
        InputError: the corpus holds no passage.
        RecordError: a passage that cannot be used, or an id that two texts have.
    """
    index = PassageIndex()
    aside = _Aside(rejects, rejects if empty is None else empty)
    lines = write_lines(folder / "corpus.jsonl", _distinct(index, rows, aside, text_field))
    if not len(lines):
        raise InputError(f"the corpus {_named(rows)} holds no passage; give one with at least two")
    return Corpus(lines, index)


class _Empty(Reject):
    """A passage without text."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Aside:
    """Where passages go that cannot be used; None: such a one is an error."""

    rejects: list[Reject] | None
    empty: list[Reject] | None

    def take(self, reject: Reject) -> None:
        _set_aside(reject, self.empty if isinstance(reject, _Empty) else self.rejects)


def _distinct(
    index: PassageIndex, rows: Rows, aside: _Aside, text_field: str | None
) -> Iterator[dict[str, Any]]:
    """Yield the passages whose text no earlier one has, and note where each stands."""
    count = 0
    for passage in _passages(rows, text_field):
        if isinstance(passage, Reject):
            aside.take(passage)
            continue
        where, line, id, text, alone = passage
        place = index.by_text.get(text_key(text))
        known = index.by_id.get(id)
        if known is not None and known != place:
            told = f"{where}:{line}: the id {id!r} stands there before with another text"
            aside.take(Reject(where, line, f"{told}; give each passage its own", text))
        elif place is not None:
            index.duplicates += 1
            index.by_id.setdefault(id, place)
        else:
            index.by_text[text_key(text)] = index.by_id[id] = count
            if alone != text:
                index.by_text_alone.setdefault(text_key(alone), []).append(count)
            count += 1
            yield {"id": id, "text": text}


def _set_aside(reject: Reject, rejects: list[Reject] | None) -> None:
    if rejects is None:
        raise RecordError(reject.error)
    rejects.append(reject)


def _passages(
    rows: Rows, text_field: str | None
) -> Iterator[tuple[str, int, str, str, str] | Reject]:
    """Yield file, line, id, text with title, and text without it; or what is wrong."""
    for where, line, value, error in _values(rows):
        passage, kind = {"text": value} if isinstance(value, str) else value, Reject
        if error is None and not isinstance(passage, Mapping):
            error = f"{short(value)} is no passage; give a text, or an object with a text"
        if error is None:
            name = text_field or next((name for name in _TEXTS if name in passage), "text")
            text = passage.get(name)
            if text_field is not None and name not in passage:
                fields = [str(one) for one in passage]
                error = f"there is no field {name!r}; there are: {', '.join(fields)}"
                error += closest(name, fields)
            elif not isinstance(text, str | None):
                error = f"the field {name!r} is {type(text).__name__}, not a text"
            elif not (whole := titled({**passage, "text": text})).strip():
                kind = _Empty if name in passage else Reject
                error = f"the field {name!r} holds no text"
                error += "" if name in passage else closest(name, list(passage))
        if error is not None:
            told = f"{where}:{line}: {error}. Correct the record, or set it aside (rejects)"
            yield kind(where, line, told, shortened(value))
        else:
            id = passage_id(passage)
            yield where, line, str(line) if id is None else id, whole, text or ""


def _values(rows: Rows) -> Iterator[tuple[str, int, Any, str | None]]:
    """Yield file, line, value and what is wrong with it."""
    if isinstance(rows, str | Path):
        source = Source(rows)
        for row in source.rows():
            yield source.name, row.line, row.value if row.error is None else row.raw, row.error
    else:
        for number, value in enumerate(rows, 1):
            yield "corpus", number, value, unwritable(value)


def _named(rows: Rows) -> str:
    return repr(str(rows)) if isinstance(rows, str | Path) else "that was given"


@dataclass(slots=True)
class RecordFile:
    """The records of a job."""

    lines: Lines
    groups: dict[bytes, list[int]]
    """Places of the records with one query, by its key."""

    def __len__(self) -> int:
        return len(self.lines)

    def record(self, place: int) -> TrainingRecord:
        """Return a record."""
        return read_training_record(self.lines[place], f"record {place + 1}")

    def siblings(self, query: str) -> list[TrainingRecord]:
        """Return all records with a query: what is a positive of one is a positive of all."""
        return [self.record(place) for place in self.groups[text_key(query)]]

    def documents(self) -> Iterator[dict[str, Any]]:
        """Yield the passages that the records hold: a corpus where there is no other."""
        for place in range(len(self)):
            for document in self.record(place).documents:
                yield {"text": document.text} | ({"id": document.id} if document.id else {})


def prepare_records(rows: Rows, folder: Path, rejects: list[Reject] | None) -> RecordFile:
    """Read records with a query and positives into a folder.

    Args:
        rows: a file, or records as objects.
        folder: where they are kept.
        rejects: takes records that cannot be used; None: the first one is an error.

    Raises:
        InputError: there is no record.
        RecordError: a record that cannot be used, with file and line.
    """
    groups: dict[bytes, list[int]] = {}

    def lines() -> Iterator[dict[str, Any]]:
        count = 0
        for record in _records(rows):
            if isinstance(record, Reject):
                _set_aside(record, rejects)
                continue
            groups.setdefault(text_key(record.query), []).append(count)
            count += 1
            yield record.to_json()

    written = write_lines(folder / "records.jsonl", lines())
    if not len(written):
        named = repr(str(rows)) if isinstance(rows, str | Path) else "the list of records"
        raise InputError(f"{named} holds no record; give records with a query and positives")
    return RecordFile(written, groups)


def _records(rows: Rows) -> Iterator[TrainingRecord | Reject]:
    if isinstance(rows, str | Path):
        yield from training_records(Source(rows))
        return
    for number, value in enumerate(rows, 1):
        try:
            if not isinstance(value, Mapping):
                raise RecordError(f"records:{number}: {short(value)} is no object with fields")
            if (reason := unwritable(value)) is not None:
                raise RecordError(f"records:{number}: {reason}")
            yield read_training_record(value, f"records:{number}")
        except RecordError as error:
            yield Reject("records", number, str(error), shortened(value))
