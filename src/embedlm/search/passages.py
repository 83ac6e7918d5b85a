"""Cuts files into passages that know their file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from embedlm.data.source import Fields, Source
from embedlm.errors import InputError, RecordError

__all__ = ["Passage", "read_passages"]

SPLITS = ("paragraph", "line")
PROSE = (".txt", ".text", ".md", ".markdown", ".rst")
RECORDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
LONGEST = 1200
"""Characters; a longer paragraph is cut where a line or a sentence ends."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a file."""

    file: str
    line: int
    """Where it begins, from 1 (parquet: the row)."""
    text: str


def read_passages(
    path: str | Path,
    *,
    split: str = "paragraph",
    text_field: str = "text",
    longest: int = LONGEST,
) -> list[Passage]:
    """Return the passages of a file, or of the files in a folder and below it.

    Prose is cut at blank lines (or at every line); of .jsonl, .csv, .tsv and .parquet each record
    is a passage. Hidden files, and in a folder files of other kinds, are left out.

    Raises:
        InputError: nothing is there, or nothing with text in it.
        RecordError: a file that is not UTF-8, or a bad record.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is not known; allowed: {', '.join(SPLITS)}")
    if longest < 1:
        raise InputError(f"longest is {longest}; give a number of characters above 0")
    root = Path(path)
    found = [
        passage
        for file in _files(root)
        for passage in (
            _records(file, text_field)
            if file.suffix.lower() in RECORDS
            else _prose(file, split, longest)
        )
    ]
    if not found:
        raise InputError(f"{str(root)!r} holds no text to search; give a file or folder with some")
    return found


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise InputError(f"{str(root)!r} is not there; give a file or a folder of text")
    found: list[Path] = []
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [
            Path(folder) / name
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in (*PROSE, *RECORDS)
        ]
    if not found:
        raise InputError(
            f"the folder {str(root)!r} holds no file that ends in one of "
            f"{', '.join((*PROSE, *RECORDS))}"
        )
    return found


def _records(file: Path, text_field: str) -> Iterator[Passage]:
    for record in Source(file, Fields(text_field)):
        if record.error is not None:
            raise RecordError(f"{file}:{record.place}: {record.error}. Mend the record")
        if record.text.strip():
            yield Passage(str(file), record.place, record.text)


def _prose(file: Path, split: str, longest: int) -> Iterator[Passage]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.object.count(b"\n", 0, error.start) + 1
        raise RecordError(
            f"{file}:{place}: not valid UTF-8; save it as UTF-8, or move it out of the folder"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {str(file)!r}: {error.strerror}") from error
    gathered: list[str] = []
    start = 1
    # Only "\n" ends a line, so that the numbers are those of an editor.
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip() and not gathered:
            start = number
        full = sum(map(len, gathered)) + len(line) > longest
        if gathered and (not line.strip() or split == "line" or full):
            yield from _pieces(str(file), start, " ".join(gathered), longest)
            gathered, start = [], number
        if line.strip():
            gathered.append(line.strip())


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
