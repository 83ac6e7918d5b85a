"""The forms of files that hold texts; one line in `FORMS` adds one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.data.compression import COMPRESSIONS, split_compression
from embedlm.data.documents import read_html, read_pdf
from embedlm.data.lines import read_jsonl, read_lines, read_paragraphs
from embedlm.data.rows import FileRow, Reading
from embedlm.data.tables import read_csv, read_parquet, read_tsv
from embedlm.errors import InputError, closest

__all__ = ["FORMS", "SUFFIXES", "FileForm", "file_form"]


@dataclass(frozen=True, slots=True)
class FileForm:
    """A form of file."""

    suffixes: tuple[str, ...]
    read: Callable[[Any, Reading], Iterator[FileRow]]
    """The reader; it takes the open file (parquet: or the path)."""
    bare: bool = False
    """A record is a text without fields."""
    paragraphs: bool = False
    """A row is a paragraph of a document that has no lines of its own."""
    quoting: bool | None = None
    """The default for whether cells may be quoted; None: the form has no such choice."""


FORMS = {
    "txt": FileForm((".txt", ".text"), read_lines, bare=True),
    "md": FileForm((".md", ".markdown", ".rst"), read_paragraphs, bare=True),
    "jsonl": FileForm((".jsonl", ".ndjson"), read_jsonl),
    "csv": FileForm((".csv",), read_csv, quoting=True),
    "tsv": FileForm((".tsv",), read_tsv, quoting=False),
    "parquet": FileForm((".parquet",), read_parquet),
    "html": FileForm((".html", ".htm", ".xhtml"), read_html, bare=True, paragraphs=True),
    "pdf": FileForm((".pdf",), read_pdf, bare=True, paragraphs=True),
}
"""In txt each line is a text; in md, html and pdf each paragraph; elsewhere a row is a record."""
SUFFIXES = {suffix: name for name, form in FORMS.items() for suffix in form.suffixes}


def file_form(path: Path, form: str | None = None) -> tuple[str | None, str]:
    """Return a file's form and compression.

    Args:
        path: its name says what `form` does not.
        form: one of `FORMS`, or one with its compression, e.g. "jsonl.gz".

    Returns:
        The form's name, None where neither tells it; the compression's suffix, "" for none.

    Raises:
        InputError: an unknown form.
    """
    bare, compression = split_compression(path)
    if form is None:
        return SUFFIXES.get(bare.suffix.lower()), compression
    name, _, packed = form.partition(".")
    if name not in FORMS or (packed and f".{packed}" not in COMPRESSIONS):
        raise InputError(
            f"input format {form!r} is not known; allowed: {', '.join(FORMS)}, each also with "
            f"{', '.join(COMPRESSIONS)}.{closest(form, list(FORMS))}"
        )
    return name, f".{packed}" if packed else compression
