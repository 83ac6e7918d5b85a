"""The forms of files that hold texts; one line in `FORMS` adds one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.data.compression import COMPRESSIONS, split_compression
from embedlm.data.lines import read_jsonl, read_lines, read_paragraphs
from embedlm.data.pages import read_html
from embedlm.data.pdf import read_pdf
from embedlm.data.rows import FileRow, Reading
from embedlm.data.tables import read_csv, read_parquet, read_tsv
from embedlm.errors import InputError, closest

__all__ = ["FORMS", "SUFFIXES", "FileForm", "check_used", "file_form"]


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


def check_used(
    path: str,
    forms: Sequence[str],
    *,
    text_field: str,
    quoting: bool | None,
    split: str | None = None,
    image_field: str | None = None,
) -> None:
    """Refuse an option that none of these forms of file can use.

    Args:
        path: the file or folder, for the message.
        forms: of the files, names of `FORMS`, or others for files of no text.
        text_field: field with the text; "text" is what a bare text is called.
        quoting: whether cells may be quoted; None: not given.
        split: where prose is cut; None: not given.
        image_field: field with the path of an image; None: not given.

    Raises:
        InputError: with the option and what it is for.
    """
    kinds = [FORMS[form] for form in forms if form in FORMS]
    unused = ""
    if split is not None and not any(kind.bare and not kind.paragraphs for kind in kinds):
        unused = "split (--split) says where .txt, .md and .rst are cut"
    elif text_field != "text" and all(kind.bare for kind in kinds):
        unused = f"text_field (--text-field) names a field of records, here {text_field!r}"
    elif image_field is not None and all(kind.bare for kind in kinds):
        unused = f"image_field (--image-field) names a field of records, here {image_field!r}"
    elif quoting is not None and all(kind.quoting is None for kind in kinds):
        unused = "quoting (--quoting) is for .csv and .tsv"
    if unused:
        held = ", ".join(f".{form}" for form in dict.fromkeys(forms))
        raise InputError(f"{unused}, and {path!r} is read as {held}; leave it out")
