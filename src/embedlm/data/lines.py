"""Readers of files that are made of lines: texts, paragraphs, JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from embedlm.data.rows import FileRow, Reading, not_utf8
from embedlm.jobs.json_files import why_not_json

__all__ = [
    "TABLE_RULE",
    "heading_words",
    "paragraphs",
    "raw_lines",
    "read_jsonl",
    "read_lines",
    "read_paragraphs",
]

TABLE_RULE = r"(?:\s*:?-+:?\s*\|)+"
"""What stands below the first row of a table, from after the sign that it may begin with."""

_BOM = b"\xef\xbb\xbf"
_HEADING = re.compile(r" {0,3}(#{1,6})\s+(?=\S)")
"""Further in it is code."""
_UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*")
"""Makes the paragraph right above it a heading."""
_COMMENT = re.compile(r" {0,3}<!--(?:(?!-->).)*-->\s*")
"""A line that readers of Markdown do not see."""
_OPENED = re.compile(r" {0,3}<!--(?!.*-->)")
"""Begins a comment that goes on in the next lines."""
_MARKED = re.compile(r"([-*+]|\d{1,9}[.)])\s|>")
"""Begins an item or a quotation, which a line below ends and does not make a heading."""
_RULE = re.compile(rf" {{0,3}}\|?{TABLE_RULE}(\s*:?-+:?\s*)?")
_FENCE = re.compile(r"(`{3,}|~{3,})(.*)")


def raw_lines(handle: BinaryIO) -> Iterator[tuple[int, bytes]]:
    r"""Yield each line with its number from 1, without its end (\n or \r\n)."""
    for number, line in enumerate(handle, 1):
        if number == 1:
            line = line.removeprefix(_BOM)
        line = line[:-1] if line.endswith(b"\n") else line
        yield number, line[:-1] if line.endswith(b"\r") else line


def read_lines(handle: BinaryIO, _: Reading) -> Iterator[FileRow]:
    """Yield a row a line; an empty line is an empty text."""
    for number, line in raw_lines(handle):
        try:
            yield FileRow(number, line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield FileRow(number, error=not_utf8(error), raw=line)


def read_paragraphs(handle: BinaryIO, reading: Reading) -> Iterator[FileRow]:
    """Yield a row a paragraph."""
    yield from paragraphs(read_lines(handle, reading))


def paragraphs(
    lines: Iterable[FileRow], longest: int | None = None, *, headings: bool = False
) -> Iterator[FileRow]:
    """Join the lines between blank lines by spaces; a paragraph's place is its first line.

    Args:
        lines: a line with an error stands alone, and ends the paragraph before it.
        longest: characters above which a paragraph is cut at the end of a line; with `headings`,
            what is left of a table begins with the table's first row again.
        headings: tell Markdown's headings (`## Words`, or words underlined by `===` or `---`)
            apart; each is a row of its own, with its level and its number signs. A line of code,
            fenced or four spaces in, is none, and neither are the fields between two `---` that a
            file begins with. A blank line within fenced code ends no paragraph, and a table ends
            the one right above it. A comment (`<!-- words -->`) that begins a line outside code is
            left out.
    """
    parts: list[str] = []
    first = 0
    for row, code in _seen(lines) if headings else ((row, False) for row in lines):
        text = str(row.value).strip()
        marked = str(row.value) if headings and not code else ""
        line = _UNDERLINE.fullmatch(marked) if parts and parts[0] != "---" else None
        if line is not None and _MARKED.match(parts[0]):
            text = ""
        elif line is not None and not parts[0].startswith("|"):
            level = 1 if line[1][0] == "=" else 2
            yield FileRow(first, f"{'#' * level} {' '.join(parts)}", heading=level)
            parts = []
            continue
        if _is_below_prose(parts, marked):
            yield FileRow(first, " ".join(parts[:-1]))
            parts, first = parts[-1:], row.line - 1
        found = _HEADING.match(marked)
        full = longest is not None and sum(map(len, parts)) + len(row.value) > longest
        blank = not text and not code
        if parts and (blank or full or found):
            yield FileRow(first, " ".join(parts))
            goes_on = headings and full and text.startswith("|")
            parts, first = _table_head(parts, longest or 0) if goes_on else [], row.line
        if row.error is not None:
            yield row
        elif found:
            yield FileRow(row.line, text, heading=len(found[1]))
        elif text:
            first = first if parts else row.line
            parts.append(text)
    if parts:
        yield FileRow(first, " ".join(parts))


def heading_words(line: str) -> str | None:
    """Return the words of a heading, without its number signs; None: the line is no heading."""
    found = _HEADING.match(line)
    if found is None:
        return None
    words = line[found.end() :].rstrip()
    open_ = words.rstrip("#")
    return open_.rstrip() if open_[-1:].isspace() else words


def _seen(lines: Iterable[FileRow]) -> Iterator[tuple[FileRow, bool]]:
    """Yield the lines of Markdown but for comments, and whether fenced code goes on after each.

    A comment that is never closed is none.
    """
    fence = ""
    held: list[FileRow] = []

    def told(row: FileRow) -> tuple[FileRow, bool]:
        nonlocal fence
        fence = _fence(str(row.value).strip(), fence)
        return row, bool(fence)

    for row in lines:
        text = str(row.value)
        if held and row.error is None:
            held.append(row)
            if "-->" in text:
                held = []
                if rest := text.partition("-->")[2].strip():
                    yield FileRow(row.line, rest), False
            continue
        yield from map(told, held)
        held = []
        if not fence and row.error is None and _OPENED.match(text):
            held.append(row)
        elif told(row)[1] or not _COMMENT.fullmatch(text):
            yield row, bool(fence)
    yield from map(told, held)


def _is_below_prose(parts: list[str], line: str) -> bool:
    """Tell whether a line is a table's rule, and the table's first row stands right below prose."""
    rows = [part.startswith("|") for part in parts]
    return len(rows) > 1 and rows[-1] and not rows[0] and _RULE.fullmatch(line) is not None


def _table_head(parts: list[str], longest: int) -> list[str]:
    """Return a table's first row and rule; none of another paragraph's lines, nor of half a one."""
    is_table = len(parts) > 2 and parts[0].startswith("|") and _RULE.fullmatch(parts[1])
    return parts[:2] if is_table and 2 * len("".join(parts[:2])) <= longest else []


def _fence(text: str, fence: str) -> str:
    """Return the fence of the code that goes on after a line; "": none does.

    A fence ends at one that is as long and stands alone. Words between marks on one line are none.
    """
    mark = _FENCE.match(text)
    if mark is None:
        return fence
    if fence:
        return "" if mark[1].startswith(fence) and not mark[2].strip() else fence
    one_line = mark[2].rstrip().endswith(mark[1]) or (mark[1][0] == "`" and "`" in mark[2])
    return "" if one_line else mark[1]


def read_jsonl(handle: BinaryIO, _: Reading) -> Iterator[FileRow]:
    """Yield a row for each line that is not blank."""
    for number, line in raw_lines(handle):
        if not line.strip():
            continue
        try:
            value = json.loads(
                line.decode("utf-8"), object_pairs_hook=_fields, parse_constant=_refuse
            )
        except UnicodeDecodeError as error:
            yield FileRow(number, error=not_utf8(error), raw=line)
        except (ValueError, RecursionError) as error:  # ValueError: an integer of 5,000 digits, too
            yield FileRow(number, error=f"not valid JSON: {why_not_json(error)}", raw=line)
        else:
            yield FileRow(number, value, raw=line)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields, none of which may stand there twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands twice in one object")
    return fields


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
