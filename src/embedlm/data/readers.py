"""What callers read of a source: records by their fields, or texts; a bad record is an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedlm.data.source import Fields, Source
from embedlm.errors import RecordError

__all__ = ["field_texts", "read_rows", "read_texts", "text_source"]


def read_rows(source: Source | str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each record's place, as "file:line", and its fields.

    A bare text is the field `text`.

    Raises:
        InputError: the file is missing or cannot be read.
        RecordError: a bad record, with file and line.
    """
    source = source if isinstance(source, Source) else Source(source)
    for row in source.rows():
        where = f"{source.name}:{row.line}"
        value = {"text": row.value} if isinstance(row.value, str) else row.value
        error = row.error if isinstance(value, dict) else "not a JSON object"
        if error is not None:
            raise RecordError(f"{where}: {error}. Correct the record")
        yield where, value


def read_texts(source: Source | str | Path) -> Iterator[str]:
    """Yield the texts of a source, or of a file whose field `text` holds them.

    Raises:
        InputError: the file is missing or cannot be read.
        RecordError: a bad record, with file and line.
    """
    source = source if isinstance(source, Source) else Source(source)
    for record in source:
        if record.error is not None:
            raise RecordError(f"{source.name}:{record.line}: {record.error}. Correct the record")
        yield record.text


def field_texts(path: str | Path, field: str) -> Iterator[str]:
    """Yield the texts of a file: those of a field, or of a bare form all.

    Raises:
        InputError: the file is missing or cannot be read.
        RecordError: a bad record, with file and line.
    """
    return read_texts(text_source(path, field))


def text_source(path: str | Path, field: str) -> Source:
    """Return the source of a file's texts, whose field counts only where records have fields."""
    source = Source(path)
    return source if source.bare else Source(path, Fields(field))
