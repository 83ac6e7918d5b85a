"""A row: what stands in a file at one place, or what is wrong there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["FileRow", "Reading", "not_utf8", "shortened"]

_LONGEST = 200
"""Characters of a bad record that are shown."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of a file."""

    line: int
    """The line on which it begins, from 1 (parquet: the row; pdf: the page)."""
    value: Any = ""
    """A bare text or fields by name; a line of JSON may hold another value."""
    error: str | None = None
    """The reason why it cannot be read; its value is then empty."""
    raw: Any = None
    """The row as the file has it: bytes, cells or fields."""
    heading: int = 0
    """The level of a heading, from 1; 0: it is none, or its form's headings are not told apart."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The options with which a file is read."""

    name: str
    """The file's, for errors."""
    columns: Callable[[list[str]], list[str]] = list
    """Takes the names of a table's columns and returns those to read.

    Raises InputError if one is missing.
    """
    quoting: bool = False
    """A cell of a table may stand in quotes and then hold delimiters and line ends."""


def shortened(raw: Any) -> str:
    """Return what stands in a file as a short text."""
    if raw is None:
        return ""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    text = text if isinstance(text, str) else repr(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return what is wrong with a line that cannot be decoded."""
    return f"not valid UTF-8 at byte {error.start} of the line; save the file as UTF-8"
