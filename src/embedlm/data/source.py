"""Reads the records of a file one by one: .txt, .jsonl, .csv, .tsv, .parquet, or standard input.

A record that cannot be read is still yielded, with its error, so that the caller can stop there or
set it aside. Nothing is held but the record at hand (parquet: a batch of rows).
"""

from __future__ import annotations

import csv
import hashlib
import json
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from embedlm.errors import InputError, closest, require

__all__ = ["KINDS", "Fields", "Record", "Source"]

KINDS = ("txt", "jsonl", "csv", "tsv", "parquet")
SUFFIXES = {".txt": "txt", ".text": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl"} | {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_EDGE = 1 << 20
_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record are read."""

    text: str = "text"
    id: str = "id"
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source."""

    place: int
    """Line (parquet: row), from 1."""
    text: str
    columns: str = "{}"
    """As JSON: the id (or else the place) under `id`, then the fields that are kept."""
    error: str | None = None
    """What is wrong with it; its text is then empty."""
    raw: str = ""
    """What stands in the source, shortened, where there is an error."""


class Source:
    """A file, or "-" for standard input, whose records are read in order."""

    def __init__(
        self, path: str | Path, fields: Fields | None = None, kind: str | None = None
    ) -> None:
        self.stdin = str(path) == "-"
        self.path = Path(path)
        self.name = "stdin" if self.stdin else str(path)
        self.fields = fields or Fields()
        self._check_file()
        self.kind = self._kind(kind)
        self.position = 0
        """How far the reader has come: bytes, or rows of a parquet file."""

    def _check_file(self) -> None:
        if self.stdin:
            self.regular = False
            return
        try:
            mode = self.path.stat().st_mode
        except OSError as error:
            raise self._unreadable(error) from error
        if stat.S_ISDIR(mode):
            raise InputError(f"the input {self.name!r} is a folder; give a file, or - for stdin")
        self.regular = stat.S_ISREG(mode)

    def _kind(self, given: str | None) -> str:
        if given is not None and given not in KINDS:
            raise InputError(
                f"input format {given!r} is not known; allowed: {', '.join(KINDS)}."
                + closest(given, list(KINDS))
            )
        kind = given or SUFFIXES.get(self.path.suffix.lower())
        if kind is None and not self.regular:
            kind = "txt"
        if kind is None:
            raise InputError(
                f"the input {self.name!r} ends in none of {', '.join(SUFFIXES)}; rename it or say "
                f"its format (--format): {', '.join(KINDS)}"
            )
        if kind == "parquet" and not self.regular:
            raise InputError("parquet cannot be read from a stream; give a file")
        return kind

    @property
    def total(self) -> int | None:
        """Where `position` ends; None for a stream."""
        if not self.regular:
            return None
        if self.kind == "parquet":
            with closing(self._parquet()) as file:
                return int(file.metadata.num_rows)
        return self.path.stat().st_size

    @property
    def unit(self) -> str:
        """The unit of `position`."""
        return "row" if self.kind == "parquet" else "B"

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this input from another one, without reading all of it."""
        facts: dict[str, Any] = {
            "format": self.kind,
            "text_field": self.fields.text,
            "id_field": self.fields.id,
            "keep": list(self.fields.keep),
        }
        if not self.regular:
            return {**facts, "stream": True}
        size = self.path.stat().st_size
        try:
            with self.path.open("rb") as handle:
                head = handle.read(_EDGE)
                handle.seek(max(0, size - _EDGE))
                tail = handle.read(_EDGE)
        except OSError as error:
            raise self._unreadable(error) from error
        return {
            **facts,
            "size": size,
            "head": hashlib.sha256(head).hexdigest()[:32],
            "tail": hashlib.sha256(tail).hexdigest()[:32],
        }

    def __iter__(self) -> Iterator[Record]:
        if self.kind == "parquet":
            yield from self._from_parquet()
            return
        read = {"txt": self._from_txt, "jsonl": self._from_jsonl}.get(self.kind, self._from_csv)
        try:
            with nullcontext(sys.stdin.buffer) if self.stdin else self.path.open("rb") as handle:
                yield from read(handle)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> InputError:
        return InputError(f"cannot read the input {self.name!r}: {error.strerror or error}")

    # -- lines --------------------------------------------------------------------------------

    def _lines(self, handle: BinaryIO) -> Iterator[tuple[int, bytes]]:
        for place, line in enumerate(handle, 1):
            self.position += len(line)
            if place == 1 and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            line = line[:-1] if line.endswith(b"\n") else line
            yield place, line[:-1] if line.endswith(b"\r") else line

    def _from_txt(self, handle: BinaryIO) -> Iterator[Record]:
        unknown = [name for name in self.fields.keep if name != "text"]
        if unknown:
            raise InputError(
                f"a .txt file has no field {unknown[0]!r} to keep; allowed: text (and the line "
                "number, which is always kept as id)"
            )
        for place, line in self._lines(handle):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                yield Record(place, "", error=_not_utf8(error), raw=_short(line))
                continue
            columns = {"id": place} | dict.fromkeys(self.fields.keep, text)
            yield Record(place, text, json.dumps(columns, ensure_ascii=False))

    def _from_jsonl(self, handle: BinaryIO) -> Iterator[Record]:
        for place, line in self._lines(handle):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Record(place, "", error=_not_utf8(error), raw=_short(line))
            except (json.JSONDecodeError, RecursionError) as error:
                yield Record(place, "", error=f"not valid JSON: {error}", raw=_short(line))
            else:
                value = {self.fields.text: value} if isinstance(value, str) else value
                yield self._record(place, value, line)

    def _record(self, place: int, value: Any, raw: bytes | None = None) -> Record:
        """Return the record that a mapping gives, with what is wrong with it."""
        error = None
        text = value.get(self.fields.text) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            error = f"a JSON {type(value).__name__}, not an object with {self.fields.text!r}"
        elif self.fields.text not in value:
            names = ", ".join(map(repr, value)) or "none"
            error = f"no field {self.fields.text!r}; there are: {names}. Say which holds the text"
        elif not isinstance(text, str):
            error = f"field {self.fields.text!r} is {type(text).__name__}, not a string"
        elif (at := _surrogate(text)) is not None:
            error = f"the text holds a lone surrogate at character {at}; it is not valid Unicode"
        if error is not None or not isinstance(text, str):
            return Record(place, "", error=error, raw=_short(raw if raw is not None else value))
        own = value.get(self.fields.id)
        kept = {"id": place if own is None else own}
        kept |= {name: value.get(name) for name in self.fields.keep}
        columns = json.dumps(kept, ensure_ascii=False, default=str)
        if _surrogate(columns) is not None:
            return Record(place, "", error="its id or a kept field holds a lone surrogate")
        return Record(place, text, columns)

    # -- tables -------------------------------------------------------------------------------

    def _check_columns(self, names: list[str]) -> None:
        for name in (self.fields.text, *self.fields.keep):
            if name not in names:
                raise InputError(
                    f"{self.name} has no column {name!r}; there are: {', '.join(names) or 'none'}."
                    + closest(name, names)
                )

    def _from_csv(self, handle: BinaryIO) -> Iterator[Record]:
        csv.field_size_limit(_LONGEST_FIELD)
        delimiter = "\t" if self.kind == "tsv" else ","
        wrapped = TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            rows = csv.reader(wrapped, delimiter=delimiter, strict=True)
            header = next(rows, [])
            self._check_columns(header)
            while True:
                place = rows.line_num + 1
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Record(place, "", error=f"not valid {self.kind.upper()}: {error}")
                    continue
                self.position = handle.tell() if self.regular else 0
                if row:
                    yield self._row(place, header, row)
        finally:
            wrapped.detach()

    def _row(self, place: int, header: list[str], row: list[str]) -> Record:
        if len(row) != len(header):
            error = f"{len(row)} fields, but the header has {len(header)}"
            return Record(place, "", error=error, raw=_short(row))
        if any(_surrogate(cell) is not None for cell in row):
            return Record(place, "", error="not valid UTF-8; save the file as UTF-8")
        return self._record(place, dict(zip(header, row, strict=True)))

    def _parquet(self) -> Any:
        parquet = require("pyarrow.parquet", "parquet")
        try:
            return parquet.ParquetFile(self.path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise InputError(f"{self.name} cannot be read as parquet: {error}") from error

    def _from_parquet(self) -> Iterator[Record]:
        with closing(self._parquet()) as file:
            names = list(file.schema_arrow.names)
            self._check_columns(names)
            wanted = [n for n in (self.fields.text, self.fields.id, *self.fields.keep)]
            columns = [name for name in names if name in wanted]
            batches = file.iter_batches(batch_size=1024, columns=columns)
            while True:
                try:
                    batch = next(batches, None)
                except (OSError, ValueError) as error:
                    raise InputError(
                        f"{self.name} cannot be read after row {self.position}: {error}"
                    ) from error
                if batch is None:
                    return
                for value in batch.to_pylist():
                    self.position += 1
                    yield self._record(self.position, value)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not valid UTF-8 at byte {error.start} of the line; save the file as UTF-8"


def _surrogate(text: str) -> int | None:
    """Return where the first lone surrogate stands."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _short(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
