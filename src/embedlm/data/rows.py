"""A row: what stands in a file at one place, or what is wrong there."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from embedlm.errors import clipped

__all__ = [
    "FileRow",
    "Reading",
    "lone_surrogate",
    "not_utf8",
    "shortened",
    "unwritable",
    "whole",
    "wide_encoding",
]

_LONGEST = 200
"""Characters of a bad record that are shown."""
_MARKS = {
    BOM_UTF32_LE: "UTF-32LE",  # before UTF-16, whose mark it begins with
    BOM_UTF32_BE: "UTF-32BE",
    BOM_UTF16_LE: "UTF-16LE",
    BOM_UTF16_BE: "UTF-16BE",
}
"""What a file in another encoding may begin with."""
_NULS: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
}
"""Without a mark: which of the first four bytes are NUL."""
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""JSON's escape of half a surrogate pair; two in a row may be a character."""


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
    return clipped(text.encode("utf-8", "replace").decode("utf-8"), _LONGEST)


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return what is wrong with a line that cannot be decoded."""
    return f"not valid UTF-8 at byte {error.start} of the line; save the file as UTF-8"


def wide_encoding(head: bytes) -> str | None:
    """Return the encoding of a text that is in UTF-16 or UTF-32, as its first bytes tell."""
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    return marked or _NULS.get(tuple(byte == 0 for byte in head[:4]))


def lone_surrogate(text: str) -> int | None:
    """Return where the first lone surrogate stands, which is half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def whole(row: FileRow) -> FileRow:
    """Return a row, or that it holds half a character, which nothing can write."""
    escaped = row.error is None and isinstance(row.raw, bytes) and _HALF.search(row.raw)
    reason = unwritable(row.value) if escaped else None
    return row if reason is None else FileRow(row.line, error=reason, raw=row.raw)


def unwritable(value: Any) -> str | None:
    """Return what of a record in memory no file could hold; None: nothing."""
    try:
        plain = dict(value) if isinstance(value, Mapping) else value
        text = json.dumps(plain, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        return f"cannot be written as JSON ({error}); give texts, numbers, lists and objects"
    if lone_surrogate(text) is None:
        return None
    return "holds a lone surrogate (half a character, \\ud800 to \\udfff); it is not valid Unicode"
