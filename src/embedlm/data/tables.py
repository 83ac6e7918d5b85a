"""Readers of tables: comma- and tab-separated values, and parquet.

In a .csv file a cell may stand in quotes. In a .tsv file a quote is an ordinary character,
unless quoting is asked for. A row that cannot be read costs its first line alone: reading goes on
at the next one, so that an unclosed quote does not affect the rows after it.
"""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from embedlm.data.lines import raw_lines
from embedlm.data.rows import FileRow, Reading
from embedlm.errors import InputError, require

__all__ = ["count_parquet", "read_csv", "read_parquet", "read_tsv"]

TAB = "\t"
LONGEST = 1 << 24
"""Characters of a row of several lines; a quote that stays open for longer is a stray one."""
_LONGEST_CELL = 2**31 - 1
_ROWS = 1024
"""Rows of a parquet file held at once."""


def read_csv(handle: BinaryIO, reading: Reading) -> Iterator[FileRow]:
    """Yield a row for each record of comma-separated values under the header."""
    yield from _read_table(handle, ",", reading)


def read_tsv(handle: BinaryIO, reading: Reading) -> Iterator[FileRow]:
    """Yield a row for each record of tab-separated values under the header."""
    yield from _read_table(handle, TAB, reading)


def _read_table(handle: BinaryIO, delimiter: str, reading: Reading) -> Iterator[FileRow]:
    split = _quoted if reading.quoting else _unquoted
    header: list[str] | None = None
    for line, cells, error in split(handle, delimiter):
        if header is None:
            if error is not None:
                raise InputError(f"the header of {reading.name} cannot be read: {error}")
            if (wrong := _wrong(cells, len(cells))) is not None:
                raise InputError(f"the header of {reading.name} is {wrong}")
            header = _names(cells, reading)
            reading.columns(header)
        elif error is not None:
            yield FileRow(line, error=error, raw="".join(cells).rstrip("\r\n"))
        elif (wrong := _wrong(cells, len(header))) is not None:
            yield FileRow(line, error=wrong, raw=cells)
        else:
            yield FileRow(line, dict(zip(header, cells, strict=True)), raw=cells)
    if header is None:
        raise InputError(f"{reading.name} is empty; its first line must name the columns")


def _names(names: Sequence[str], reading: Reading) -> list[str]:
    """Return the names of columns.

    Raises:
        InputError: two columns have one name, so that a record could not hold both.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(
            f"{reading.name} has several columns named {twice[0]!r}; give each a name of its own"
        )
    return list(names)


def _wrong(cells: Sequence[str], width: int) -> str | None:
    if len(cells) != width:
        return f"{len(cells)} fields, but the header has {width}"
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return "not valid UTF-8; save the file as UTF-8"
    return None


_Cells = tuple[int, list[str], str | None]
"""The line on which a record begins, its cells, and what is wrong with it."""


def _unquoted(handle: BinaryIO, delimiter: str) -> Iterator[_Cells]:
    for number, line in raw_lines(handle):
        if line:
            yield number, line.decode("utf-8", "surrogateescape").split(delimiter), None


def _quoted(handle: BinaryIO, delimiter: str) -> Iterator[_Cells]:
    csv.field_size_limit(_LONGEST_CELL)
    text = TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
    lines = _Lines(text)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    width: int | None = None
    try:
        while True:
            error = None
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as reason:
                error = f"not valid {'TSV' if delimiter == TAB else 'CSV'}: {reason}"
                rows = csv.reader(lines, delimiter=delimiter, strict=True)
            else:
                if width is not None and len(cells) != width and len(lines.taken) > 1:
                    # Most likely a stray quote has joined lines that are records of their own.
                    error = f"{len(cells)} fields, but the header has {width}"
            first, start = lines.taken[0]
            if error is not None:
                lines.go_back()
                yield first, [start], error
            else:
                lines.taken.clear()
                width = width or len(cells)
                if cells:
                    yield first, cells, None
    finally:
        text.detach()


class _Lines:
    """Numbered lines; the reader can go back to a line."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = enumerate(lines, 1)
        self._again: deque[tuple[int, str]] = deque()
        self.taken: list[tuple[int, str]] = []
        """The lines of the current record."""
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._size = self._size + len(self.taken[-1][1]) if self.taken else 0
        if self._size > LONGEST:
            raise StopIteration  # to the csv module a record that the end of the file cuts off
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        return line[1]

    def go_back(self) -> None:
        """Return to the line after the first line of the current record."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.taken.clear()


def read_parquet(source: Path | BinaryIO, reading: Reading) -> Iterator[FileRow]:
    """Yield a row for each row of a parquet file."""
    with closing(_open_parquet(source, reading.name)) as file:
        names = _names(file.schema_arrow.names, reading)
        batches = file.iter_batches(batch_size=_ROWS, columns=reading.columns(names))
        number = 0
        while True:
            try:
                batch = next(batches, None)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{reading.name} cannot be read after row {number}: {error}"
                ) from error
            if batch is None:
                return
            for value in batch.to_pylist():
                number += 1
                yield FileRow(number, value, raw=value)


def count_parquet(source: Path | BinaryIO, name: str) -> int:
    """Return how many rows a parquet file has."""
    with closing(_open_parquet(source, name)) as file:
        return int(file.metadata.num_rows)


def _open_parquet(source: Path | BinaryIO, name: str) -> Any:
    parquet = require("pyarrow.parquet", "parquet")
    try:
        return parquet.ParquetFile(source)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{name} cannot be read as parquet: {error}") from error
