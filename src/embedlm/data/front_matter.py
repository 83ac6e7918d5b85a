"""What stands in a Markdown file and is no text of it: fields at its head, lines across it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import yaml

from embedlm.data.rows import FileRow

__all__ = ["below", "is_break", "without_fields"]

_BREAK = re.compile(r"([-*_])(\s*\1){2,}")
_MOST = 200
"""Lines that the fields of a file may take."""


def is_break(row: FileRow) -> bool:
    """Tell whether a paragraph is a line across the page (`---`, `* * *`)."""
    return row.error is None and _BREAK.fullmatch(str(row.value)) is not None


def without_fields(lines: Iterable[FileRow]) -> tuple[FileRow | None, Iterator[FileRow]]:
    """Return the lines of Markdown but for the fields in YAML between two `---` at its head.

    With them comes the heading that their `title` makes; None: there is none. What is not closed,
    or is no mapping, is text.
    """
    rest = iter(lines)
    title = ""
    held: list[FileRow] = []
    for row in rest:
        text = "" if row.error is not None else str(row.value).rstrip()
        if held and text in ("---", "..."):
            fields = _mapping(held[1:])
            if fields is not None:
                title = " ".join(str(fields.get("title") or "").split())
                held = []
                break
        held.append(row)
        if (len(held) == 1 and text != "---") or len(held) > _MOST:
            break
    return FileRow(1, title, heading=1) if title else None, chain(held, rest)


def below(title: FileRow | None, rows: Iterable[FileRow]) -> Iterator[FileRow]:
    """Yield rows under a title, which is above all their headings."""
    if title is None:
        yield from rows
        return
    yield title
    for row in rows:
        yield replace(row, heading=row.heading + 1) if row.heading else row


def _mapping(lines: list[FileRow]) -> dict[Any, Any] | None:
    """Return the mapping that lines of YAML hold; None: they are something else."""
    try:
        found = yaml.safe_load("\n".join(str(row.value) for row in lines))
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return found if isinstance(found, dict) else None
