"""Reads the records of a file, or of standard input, one by one, whatever the file's form.

A record that cannot be read is still yielded, with its error, so that the caller can stop there or
set it aside. Only the current record is in memory (parquet: a batch of rows).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from embedlm.data.compression import COMPRESSIONS, DAMAGE, Meter, existing, unpacked
from embedlm.data.forms import FORMS, SUFFIXES, file_form
from embedlm.data.images import ImageFile, image_file
from embedlm.data.rows import FileRow, Reading, lone_surrogate, shortened, whole, wide_encoding
from embedlm.data.tables import count_parquet
from embedlm.errors import InputError, closest
from embedlm.jobs.names import check_name

__all__ = ["WHICH_FIELD", "Fields", "Record", "Source"]

WHICH_FIELD = "Say which holds the text (--text-field, text_field=), or call it 'text'"

_EDGE = 1 << 20
"""Bytes at each end of a file that its fingerprint reads."""
_COUNTED = 1 << 28
"""Bytes of the largest file whose records are counted before they are read."""
_ID = "id"
_IN_UTF8 = ("txt", "md", "jsonl", "csv", "tsv", "html")
"""Forms of text whose bytes are read as UTF-8."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record are read."""

    text: str = "text"
    id: str = _ID
    """The default field may be missing from a record; then its line number is the id."""
    keep: tuple[str, ...] = ()
    image: str | None = None
    """Holds the path of an image, relative to the file's folder; None: no field does."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source."""

    line: int
    """The line on which it begins (parquet: its row), from 1."""
    text: str
    columns: str = "{}"
    """The output's columns as JSON: `id` (the line number where there is none) and kept fields."""
    error: str | None = None
    """The reason why the record cannot be used; its text is then empty."""
    raw: str = ""
    """The record as the source has it, shortened; empty where there is no error."""
    image: ImageFile | None = None
    """Beside the text, which may then be empty."""


class Source:
    """A file, or "-" for standard input, whose records are read in order.

    Args:
        path: the file; where it is missing, the one with .gz, .xz or .zst is read instead.
        fields: which fields of a record are read.
        form: one of `FORMS`, also with a compression ("csv.gz"); None: as the name's end says.
        quoting: whether cells of a .csv or .tsv may stand in quotes; None: those of .csv.

    Raises:
        InputError: no such file, or a form or option that it cannot have.
    """

    def __init__(
        self,
        path: str | Path,
        fields: Fields | None = None,
        form: str | None = None,
        *,
        quoting: bool | None = None,
    ) -> None:
        self._row = 0
        check_name(path, "input")
        self.stdin = str(path) == "-"
        self.path = Path(path) if self.stdin else existing(Path(path)) or Path(path)
        self.name = "stdin" if self.stdin else str(self.path)
        self.fields = fields or Fields()
        self.regular = self._is_regular()
        self.form, self.compression = self._form(form)
        self.quoting = self._quoting(quoting)
        self._meter: Meter | None = None
        self._unpacked: BinaryIO | None = None

    @property
    def bare(self) -> bool:
        """Whether records are texts without fields."""
        return FORMS[self.form].bare

    def _is_regular(self) -> bool:
        if self.stdin:
            return False
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError as error:
            raise InputError(
                f"the input {self.name} is not there: No such file or directory (nor with "
                f"{', '.join(COMPRESSIONS)}); check its name"
            ) from error
        except OSError as error:
            raise self._unreadable(error) from error
        if stat.S_ISDIR(mode):
            raise InputError(f"the input {self.name!r} is a folder; give a file, or - for stdin")
        return stat.S_ISREG(mode)

    def _form(self, form: str | None) -> tuple[str, str]:
        name, compression = file_form(self.path, form)
        if name is None and not self.regular:
            name = "txt"
        if name is None:
            raise InputError(
                f"the input {self.name!r} ends in none of {', '.join(SUFFIXES)}; rename it, or, "
                f"where a command has --format, say what it is: {', '.join(FORMS)}"
            )
        if name == "parquet" and not self.regular:
            raise InputError("parquet cannot be read from a stream; give a file")
        return name, compression

    def _quoting(self, quoting: bool | None) -> bool:
        default = FORMS[self.form].quoting
        if quoting is not None and default is None:
            raise InputError(
                f"quoting was given for {self.name!r}, a .{self.form} file; only .csv and .tsv "
                "have a choice"
            )
        return bool(default if quoting is None else quoting)

    def _required(self) -> list[str]:
        """Return the id's and the image's field where they were named."""
        named = [self.fields.id] if self.fields.id != _ID else []  # the default may be missing
        return named if self.fields.image is None else [*named, self.fields.image]

    # -- what and how far ---------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The number of bytes that have been read (of a parquet file: of rows)."""
        if self.form == "parquet":
            return self._row
        return self._meter.bytes if self._meter is not None else 0

    @property
    def total(self) -> int | None:
        """The value of `position` at the end of the file; None for a stream."""
        if not self.regular:
            return None
        if self.form == "parquet":
            with self._opened() as file:
                return count_parquet(file, self.name)
        return self.path.stat().st_size

    def count(self) -> int | None:
        """Return the number of records; None where counting would take long or use up a stream."""
        if self.form == "parquet":
            return self.total
        if not self.regular or self.path.stat().st_size > _COUNTED:
            return None
        return sum(1 for _ in self._rows(self._columns))

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this input from another one, without reading all of it."""
        facts: dict[str, Any] = {
            "format": self.form + self.compression,
            "text_field": self.fields.text,
            "id_field": self.fields.id,
            "keep": list(self.fields.keep),
            "quoting": self.quoting,
        }
        if self.fields.image is not None:
            facts["image_field"] = self.fields.image
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

    # -- rows ---------------------------------------------------------------------------------

    def rows(self) -> Generator[FileRow, None, None]:
        """Yield the rows with all their fields."""
        yield from map(whole, self._rows(list))

    def _rows(self, columns: Any) -> Iterator[FileRow]:
        self._row = 0
        reading = Reading(self.name, columns, self.quoting)
        try:
            with self._opened() as file:
                for row in FORMS[self.form].read(file, reading):
                    self._row = row.line
                    yield row
        except (OSError, *DAMAGE) as error:
            raise self._unreadable(error) from error

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        if self.form == "parquet":
            yield self.path if not self.compression else self._unpacked_file()
            return
        with nullcontext(sys.stdin.buffer) if self.stdin else self.path.open("rb", 0) as stream:
            self._meter = Meter(stream)
            with unpacked(self._meter, self.compression) as file:
                self._check_encoding(file)
                yield file

    def _check_encoding(self, file: Any) -> None:
        """Refuse a file of UTF-16 or UTF-32 whole: each of its lines would be a bad record."""
        encoding = wide_encoding(file.peek(4)[:4]) if self.form in _IN_UTF8 else None
        if encoding is not None:
            raise InputError(
                f"the input {self.name!r} is in {encoding}, not in UTF-8; save it as UTF-8, e.g. "
                f"iconv -f {encoding} -t UTF-8 {self.path.name} > in-utf8.{self.form}"
            )

    def _unpacked_file(self) -> BinaryIO:
        """Return a compressed parquet file's content, which must be seekable, as a file on disk."""
        if self._unpacked is None:
            file: Any = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the source)
            weakref.finalize(self, file.close)
            with (
                self.path.open("rb", 0) as stream,
                unpacked(Meter(stream), self.compression) as content,
            ):
                shutil.copyfileobj(content, file)
            self._unpacked = file
        self._unpacked.seek(0)
        return self._unpacked

    def _unreadable(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or error
        after = f" after line {self._row}" if self._row else ""
        return InputError(f"cannot read the input {self.name!r}{after}: {reason}")

    # -- records ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Record]:
        search = self._search()
        for row in self._rows(self._columns):
            search.look(row)
            yield self._record(row)
        search.end(self.name)

    def check_fields(self) -> None:
        """Refuse an id or a kept field that no record has, before any work is done.

        Reads as far as the first records that have them. A stream is checked at its end.

        Raises:
            InputError: no record has the field.
        """
        search = self._search()
        if not search.missing or not self.regular:
            return
        for row in self._rows(self._columns):
            search.look(row)
            if not search.missing:
                return
        search.end(self.name)

    def _search(self) -> _FieldSearch:
        """Return a search for the fields that the caller named; a bare form has none."""
        keep = self.fields.keep
        named = [name for name in (self.fields.text, *self._required(), *keep) if name != "text"]
        if self.bare and named:
            purpose = " to keep" if named[0] in keep else ""
            form = "; where it holds records, say so: --format" if self.stdin else ""
            raise InputError(
                f"{self.name}: a .{self.form} file has no field {named[0]!r}{purpose}; allowed: "
                f"text (and the line number, which is always kept as id){form}"
            )
        return _FieldSearch(set() if self.bare else {*self._required(), *keep})

    def _columns(self, names: list[str]) -> list[str]:
        """Return those of a table's columns that are read, and refuse one that is missing."""
        required = (text := self.fields.text, *self._required(), *self.fields.keep)
        for name in required:
            if name not in names and (name != text or self.fields.image is None):
                raise InputError(
                    f"{self.name} has no column {name!r}; there are: {', '.join(names)}."
                    + closest(name, names)
                    + (f" {WHICH_FIELD}" if name == text else "")
                )
        return [name for name in names if name in (*required, self.fields.id)]

    def _record(self, row: FileRow) -> Record:
        """Return the record of a row, with what is wrong with it."""
        fields = self.fields
        if row.error is not None:
            return Record(row.line, "", error=row.error, raw=shortened(row.raw))
        value: Any = row.value
        if isinstance(value, str):
            value = {fields.text: value, **dict.fromkeys(fields.keep, value)}
        image = None
        try:
            if fields.image is not None and isinstance(value, dict):
                image = image_file(value.get(fields.image), fields.image, self.path)
            text = _text(value, fields.text, lone_image=image is not None)
        except InputError as error:
            return Record(row.line, "", error=str(error), raw=shortened(row.raw))
        id = value.get(fields.id)
        columns = {"id": row.line if id is None else id}
        columns |= {name: value.get(name) for name in fields.keep}
        written, wrong = _written(columns)
        if wrong is not None:
            told = f"its id or a kept field {wrong}"
            return Record(row.line, "", error=told, raw=shortened(row.raw))
        return Record(row.line, text, written, image=image)


def _text(value: Any, field: str, *, lone_image: bool) -> str:
    """Return the text of a record, which may be missing beside an image.

    Raises:
        InputError: it is missing otherwise, or is no text.
    """
    if not isinstance(value, dict):
        raise InputError(f"a JSON {type(value).__name__}, not an object with {field!r}")
    text = value.get(field)
    if lone_image and text is None:
        return ""
    if field not in value:
        raise InputError(_lacks(field, value))
    if not isinstance(text, str):
        raise InputError(f"field {field!r} is {type(text).__name__}, not a string")
    if (at := lone_surrogate(text)) is not None:
        raise InputError(
            f"the text holds a lone surrogate at character {at}; it is not valid Unicode"
        )
    return text


def _lacks(field: str, record: dict[str, Any]) -> str:
    """Return what is wrong with a record that lacks a field."""
    if not record:
        return f"no field {field!r}: the record is empty"
    names = ", ".join(map(repr, record))
    return f"no field {field!r}; there are: {names}. {WHICH_FIELD}"


def _written(columns: dict[str, Any]) -> tuple[str, str | None]:
    """Return columns as JSON, and what is wrong with them."""
    try:
        written = json.dumps(columns, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return "", "is NaN or infinite, which JSON cannot hold"
    return written, None if lone_surrogate(written) is None else "holds a lone surrogate"


@dataclass(slots=True)
class _FieldSearch:
    """Finds out whether any record has the fields that the caller named."""

    missing: set[str]
    names: dict[str, None] = field(default_factory=dict)
    """The fields that records have."""

    def look(self, row: FileRow) -> None:
        if self.missing and row.error is None:
            fields = list(row.value) if isinstance(row.value, dict) else []
            self.missing.difference_update(fields)
            self.names |= dict.fromkeys(fields)

    def end(self, name: str) -> None:
        """Refuse what is missing, unless no record had any field."""
        if self.missing and self.names:
            missing, names = min(self.missing), list(self.names)
            raise InputError(
                f"no record of {name} has the field {missing!r}; there are: {', '.join(names)}."
                + closest(missing, names)
            )
