"""Cuts files into passages that know their file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from embedlm.data import Fields, Source, existing
from embedlm.data.compression import COMPRESSIONS
from embedlm.data.forms import FORMS, SUFFIXES, check_used, file_form
from embedlm.data.lines import paragraphs
from embedlm.data.rows import FileRow
from embedlm.errors import InputError, RecordError
from embedlm.jobs.names import check_name

__all__ = ["Passage", "files_of", "prose", "read_passages"]

SPLITS = ("paragraph", "line")
LONGEST = 1200
"""Characters; a longer paragraph is cut where a line or a sentence ends."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a file that is embedded and found as one text."""

    file: str
    line: int
    """The line on which it begins, from 1 (.parquet: the row; .pdf: the page)."""
    text: str


def read_passages(
    path: str | Path,
    *,
    split: str | None = None,
    text_field: str = "text",
    quoting: bool | None = None,
    longest: int = LONGEST,
) -> list[Passage]:
    """Return the passages of a file, of the files in a folder and below it, or of stdin ("-").

    Prose (.txt, .md, .rst) is cut at blank lines, or at every line. A paragraph, heading, list item
    or table cell of .html is a passage, and so is a paragraph of a .pdf (which needs pypdf) and a
    record of .jsonl, .csv, .tsv and .parquet. In a folder, hidden files and files of other forms
    are left out.

    Args:
        path: the file or folder.
        split: "paragraph" or "line"; where prose is cut. None: at paragraphs.
        text_field: field or column with the text.
        quoting: whether cells of a .csv or .tsv may stand in quotes; None: those of .csv.
        longest: characters of a passage of prose.

    Raises:
        InputError: nothing is there, or nothing with text in it; or an option that no file can
            use.
        RecordError: text that is not UTF-8, or another bad record, with file and line.
    """
    if split is not None and split not in SPLITS:
        raise InputError(f"split {split!r} is not known; allowed: {', '.join(SPLITS)}")
    if longest < 1:
        raise InputError(f"longest is {longest}; give a number of characters above 0")
    files = files_of(path)
    forms = [file_form(Path(file))[0] or "txt" for file in files]
    check_used(str(path), forms, split=split, text_field=text_field, quoting=quoting)
    passages: list[Passage] = []
    for file, form in zip(files, forms, strict=True):
        if FORMS[form].bare:
            passages += prose(file, split or "paragraph", longest)
        else:
            quoted = None if FORMS[form].quoting is None else quoting
            passages += _records(file, text_field, quoted)
    if not passages:
        raise InputError(f"{str(path)!r} holds no text to search; give a file or folder with some")
    return passages


def files_of(path: str | Path) -> list[str]:
    """Return the file, or the files of a folder and below it that can be read, in order.

    Raises:
        InputError: there is none.
    """
    check_name(path, "input")
    root = existing(Path(path))
    if str(path) == "-" or (root is not None and not root.is_dir()):
        return [str(path if root is None else root)]
    if root is None:
        raise InputError(f"{str(path)!r} is not there; give a file or a folder of text")
    files: list[str] = []
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        files += [
            str(Path(folder) / name)
            for name in sorted(names)
            if not name.startswith(".") and file_form(Path(name))[0] is not None
        ]
    if not files:
        raise InputError(
            f"the folder {str(root)!r} holds no file that ends in one of {', '.join(SUFFIXES)}, "
            f"with or without {', '.join(COMPRESSIONS)}"
        )
    return files


def _records(file: str, text_field: str, quoting: bool | None) -> Iterator[Passage]:
    for record in Source(file, Fields(text_field), quoting=quoting):
        if record.error is not None:
            raise RecordError(f"{file}:{record.line}: {record.error}. Mend the record")
        if record.text.strip():
            yield Passage(file, record.line, record.text)


def prose(file: str, split: str = "paragraph", longest: int = LONGEST) -> Iterator[Passage]:
    """Yield the passages of a document; a file of no known form is read as lines of text."""
    form, compression = file_form(Path(file))
    if form is not None and FORMS[form].paragraphs:
        rows = Source(file).rows()
    else:
        source = Source(file, form=f"txt{compression}")
        rows = _lines(source) if split == "line" else paragraphs(source.rows(), longest)
    for row in rows:
        if row.error is not None:
            raise RecordError(f"{file}:{row.line}: {row.error}, or move it out of the folder")
        yield from _pieces(file, row.line, str(row.value).strip(), longest)


def _lines(source: Source) -> Iterator[FileRow]:
    for row in source.rows():
        if row.error is not None or str(row.value).strip():
            yield row


def _pieces(file: str, line: int, text: str, longest: int) -> Iterator[Passage]:
    """Yield a paragraph, cut at sentence ends (or, failing these, anywhere) if it is too long."""
    piece = ""
    for sentence in _SENTENCE_END.split(text):
        if piece and len(piece) + len(sentence) + 1 > longest:
            yield Passage(file, line, piece)
            piece = ""
        piece = f"{piece} {sentence}".lstrip()
        while len(piece) > longest:
            yield Passage(file, line, piece[:longest])
            piece = piece[longest:].lstrip()
    if piece:
        yield Passage(file, line, piece)
