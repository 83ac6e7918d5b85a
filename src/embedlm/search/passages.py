"""Cuts files into passages that know their file and line."""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from embedlm.data import Fields, Source, existing
from embedlm.data.compression import COMPRESSIONS
from embedlm.data.folders import visible_files
from embedlm.data.forms import FORMS, SUFFIXES, check_used, file_form
from embedlm.data.front_matter import below, is_break, without_fields
from embedlm.data.images import IMAGE_SUFFIXES
from embedlm.data.lines import TABLE_RULE, heading_words, paragraphs
from embedlm.data.rows import FileRow
from embedlm.data.sentences import sentence_gaps
from embedlm.errors import InputError, RecordError
from embedlm.jobs.names import check_name

__all__ = ["Passage", "files_of", "prose", "read_passages", "whole_text"]

SPLITS = ("paragraph", "line")
LONGEST = 1200
"""Characters; a longer paragraph is cut where a line or a sentence ends."""
LONGEST_HEADING = 300
"""Characters; a longer one would drown what stands under it, and is a paragraph."""
_BETWEEN_ROWS = re.compile(r"(?<=\|) (?=\|)")


def _matches(pattern: str) -> Callable[[str], list[int]]:
    found = re.compile(pattern).finditer
    return lambda text: [place.start() for place in found(text)]


_ENDS = (
    ("|", _matches(_BETWEEN_ROWS.pattern)),
    ("- ", _matches(r"\s+(?=- )")),
    ("", lambda text: [start for start, _ in sentence_gaps(text)]),
    ("", _matches(r"\s*\n\s*")),
    ("", _matches(r"\s+")),
)
"""Where a long paragraph is cut, by how it begins: a table at its rows, a list at its items, else
at sentences, failing these at lines, failing these at words. Lines are joined by one blank, and an
empty cell of a table has mostly more."""
_TABLE = re.compile(rf"\|.*?\| \|{TABLE_RULE} (?=\|)")
"""The first row of a table, and the rule below it."""
_BLANKS = re.compile(r"\s*")
log = logging.getLogger(__name__)
Fits = Callable[[str], bool]
"""Whether a model reads all of a text."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a file that is embedded and found as one text."""

    file: str
    line: int
    """The line on which it begins, from 1 (.parquet: the row; .pdf: the page)."""
    text: str
    """Of a paragraph: below the headings that it stands under."""


def read_passages(
    path: str | Path,
    *,
    split: str | None = None,
    text_field: str = "text",
    quoting: bool | None = None,
    longest: int = LONGEST,
    fits: Fits | None = None,
) -> list[Passage]:
    """Return the passages of a file, of the files in a folder and below it, or of stdin ("-").

    Prose (.txt, .md, .rst) is cut at blank lines, or at every line. A paragraph, list item or table
    of .html is a passage, and so is a paragraph of a .pdf (which needs pypdf) and a record of
    .jsonl, .csv, .tsv and .parquet. Paragraphs of .md and .html carry their headings, see `prose`.
    In a folder, hidden files and files of other forms are left out.

    Args:
        path: the file or folder.
        split: "paragraph" or "line"; where prose is cut. None: at paragraphs.
        text_field: field or column with the text.
        quoting: whether cells of a .csv or .tsv may stand in quotes; None: those of .csv.
        longest: characters of a passage of prose, without its headings.
        fits: whether a passage of prose, with its headings, may stand whole; see `reads_whole`.

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
            passages += prose(file, split or "paragraph", longest, fits=fits)
        else:
            quoted = None if FORMS[form].quoting is None else quoting
            passages += _records(file, text_field, quoted)
    if not passages:
        raise InputError(f"{str(path)!r} holds no text to search; give a file or folder with some")
    return passages


def files_of(path: str | Path, *, tell: bool = False, images: bool = False) -> list[str]:
    """Return the file, or the files of a folder and below it that can be read, in order.

    Args:
        path: the file or folder.
        tell: log how many files have forms that cannot be read.
        images: whether files that are images are among those that can be read.

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
    others: Counter[str] = Counter()
    for file in visible_files(root):
        seen = images and file.suffix.lower() in IMAGE_SUFFIXES
        if seen or file_form(file)[0] is not None:
            files.append(str(file))
        else:
            others[file.suffix or file.name] += 1
    if not files:
        pictures = sum(others[ending] for ending in others if ending.lower() in IMAGE_SUFFIXES)
        more = f"; its images ({pictures:,}) are indexed by a model that reads images"
        raise InputError(
            f"the folder {str(root)!r} holds no file that ends in one of {', '.join(SUFFIXES)}, "
            f"with or without {', '.join(COMPRESSIONS)}" + (more if pictures else "")
        )
    if tell and others:
        told = ", ".join(f"{ending} ({count:,})" for ending, count in others.most_common(9))
        log.warning("left out of %s, since such files cannot be read: %s", root, told)
    return files


def _records(file: str, text_field: str, quoting: bool | None) -> Iterator[Passage]:
    for record in Source(file, Fields(text_field), quoting=quoting):
        if record.error is not None:
            raise RecordError(f"{file}:{record.line}: {record.error}. Correct the record")
        if record.text.strip():
            yield Passage(file, record.line, record.text)


def prose(
    file: str,
    split: str = "paragraph",
    longest: int = LONGEST,
    *,
    headings: bool = True,
    fits: Fits | None = None,
) -> Iterator[Passage]:
    """Yield the passages of a document; a file of no known form is read as lines of text.

    Args:
        file: its path.
        split: "paragraph" or "line".
        longest: characters of a passage, without its headings.
        headings: a paragraph of Markdown or HTML begins with the headings that it stands under, on
            a line of their own; a heading alone is a passage only where nothing is below. One of
            more than LONGEST_HEADING characters is a paragraph, and so is one that with those above
            it would take more than half of what fits. Without it each heading is a passage.
        fits: whether a passage, with its headings, may stand whole; None: any of that length may.
    """
    rows = _rows(file, split, longest)
    for above, row in _under_headings(rows, headings, fits):
        lead = f"{above}\n" if above else ""
        for piece in _cut(str(row.value).strip(), _Whole(lead, longest, fits)):
            yield Passage(file, row.line, lead + piece)


def whole_text(file: str) -> str:
    """Return all text of a document, a blank line between its paragraphs.

    Headings have their number signs, those of HTML too; another paragraph that begins with such
    signs, as code does, is indented. Each row of a table has a line of its own, at whose end the
    text can be cut.
    """
    form = file_form(Path(file))[0]
    parts = []
    for row in _rows(file, "paragraph", None):
        text = str(row.value).strip()
        signed = heading_words(text) is not None
        if row.heading and not signed:
            text = f"{'#' * min(row.heading, 6)} {text}"
        elif signed and not row.heading and form in ("md", "html"):
            text = f"    {text}"
        elif _TABLE.match(text):
            text = _BETWEEN_ROWS.sub("\n", text)
        parts.append(text)
    return "\n\n".join(parts)


def _rows(file: str, split: str, longest: int | None) -> Iterator[FileRow]:
    """Yield the paragraphs, headings or lines of a document."""
    form, compression = file_form(Path(file))
    whole = form is not None and FORMS[form].paragraphs
    source = Source(file) if whole else Source(file, form=f"txt{compression}")
    with closing(source.rows()) as read:  # an error leaves no file open
        rows: Iterable[FileRow] = read
        if not whole:
            marked = form == "md" and ".rst" not in Path(file).suffixes
            title, lines = without_fields(read) if marked else (None, read)
            rows = (
                _lines(lines)
                if split == "line"
                else below(title, paragraphs(lines, longest, headings=marked))
            )
        for row in rows:
            if row.error is not None:
                raise RecordError(f"{file}:{row.line}: {row.error}, or move it out of the folder")
            if form != "md" or not is_break(row):
                yield row


def _under_headings(
    rows: Iterable[FileRow], headings: bool, fits: Fits | None
) -> Iterator[tuple[str, FileRow]]:
    """Yield each row with the headings that it stands under, on one line; "" where there are none.

    A heading goes with the rows below it, and is a row itself where nothing is below it, or where
    it would leave too little room for them.
    """
    stack: list[FileRow] = []
    bare: FileRow | None = None
    for row in rows:
        if not headings or not row.heading:
            bare = None
            yield _above(stack), row
            continue
        if bare is not None and bare.heading >= row.heading:
            yield "", bare
        stack = [one for one in stack if one.heading < row.heading]
        twice = f"{_above([*stack, row])}\n" * 2
        if len(str(row.value)) > LONGEST_HEADING or not (fits is None or fits(twice)):
            bare = None
            yield _above(stack), row
        else:
            bare = row
            stack.append(row)
    if bare is not None:
        yield "", bare


def _above(stack: Iterable[FileRow]) -> str:
    return " > ".join(words for words, _ in groupby(map(_words, stack)))  # a title again as h1


def _words(heading: FileRow) -> str:
    text = str(heading.value).strip()
    return heading_words(text) or text


def _lines(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    for row in rows:
        if row.error is not None or str(row.value).strip():
            yield row


@dataclass(frozen=True, slots=True)
class _Whole:
    """Whether a part of a paragraph is short enough to stand whole."""

    lead: str
    """Stands before each part."""
    longest: int
    fits: Fits | None

    def __call__(self, part: str) -> bool:
        if len(part) > self.longest:
            return False
        return self.fits is None or self.fits(self.lead + part)


def _cut(text: str, whole: _Whole) -> Iterator[str]:
    """Yield the parts of a paragraph; each part of a table begins with its first row."""
    table = _TABLE.match(text)
    if table is None or whole(text) or not whole(2 * table[0]):
        yield from _pieces(text, whole)
        return
    head = table[0]
    rest = _Whole(whole.lead + head, whole.longest - len(head), whole.fits)
    for piece in _pieces(text[table.end() :], rest):
        yield head + piece


def _pieces(text: str, whole: _Whole) -> Iterator[str]:
    """Yield the parts of a paragraph, as long as may be, cut at the largest units that fit."""
    start = 0
    while rest := text[start : start + whole.longest + 1]:
        if whole(rest):
            yield rest
            return
        ends = _ends(rest)
        held = bisect_left(ends, True, key=lambda end: not whole(rest[:end]))
        part = rest[: ends[max(held - 1, 0)]]
        if held or len(part) < 2:  # one character is no more to be cut
            yield part
        else:
            yield from _pieces(part, whole)
        blank = _BLANKS.match(text, start + len(part))
        start = blank.end() if blank else len(text)


def _ends(text: str) -> Sequence[int]:
    """Return where a text may be cut, by the largest units that it has several of."""
    for begin, ends in _ENDS:
        found = ends(text) if text.startswith(begin) else []
        if found:
            return found
    return range(1, max(len(text), 2))
