"""Documents as a run reads them, and the chunks they are cut into: by structure and by length."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedlm.data import existing
from embedlm.data.forms import FORMS, file_form
from embedlm.data.lines import heading_words
from embedlm.data.records import titled
from embedlm.errors import InputError, RecordError
from embedlm.jobs import Reject
from embedlm.search.chunks import Chunking
from embedlm.search.documents import Document, read_documents
from embedlm.search.passages import files_of

__all__ = ["Chunk", "Corpus", "cut", "documents_digest", "read_corpus"]

_LONGEST_TITLE = 120
"""Characters; a longer first paragraph of a page of HTML is no title."""
_FEWEST = 10
"""Characters of a chunk; a shorter one says nothing that could be searched for (CADET's)."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of a file or folder, and what could not be read."""

    documents: list[Document]
    set_aside: list[Reject]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document that is found as one passage."""

    id: str
    """The document's id; of a document with several chunks followed by # and a number."""
    document: str
    title: str
    """Of the document; "" where it has none."""
    heading: str
    """Of the section; "" where it has none, or where it is the title."""
    text: str
    """Without title and heading."""
    number: int = 0
    """Which chunk of its document, from 0."""

    @property
    def name(self) -> str:
        """Title and heading."""
        return ": ".join(part for part in (self.title, self.heading) if part)

    @property
    def passage(self) -> str:
        """The whole text that is embedded."""
        return self.without("")

    def without(self, part: str) -> str:
        """Return the passage without a part of its text."""
        text = " ".join(self.text.replace(part, " ", 1).split()) if part else self.text
        return titled({"title": self.name, "text": text})

    def to_json(self) -> dict[str, Any]:
        """Return it as a record, with the fields of BEIR's corpora."""
        facts = asdict(self)
        return {"_id": facts.pop("id"), **facts, "title": self.name}


def read_corpus(path: str | Path, text_field: str = "text") -> Corpus:
    """Return the documents of a file, of a folder and below it, or of a BEIR folder.

    A file of prose is a document; a record is one. A file that cannot be read is set aside, with
    the reason; files of unknown forms are left out, as everywhere.

    Raises:
        InputError: nothing is there, none of it can be read, or an id is given twice.
    """
    root = Path(path)
    beir = existing(root / "corpus.jsonl") if root.is_dir() else None
    files = [str(beir)] if beir is not None else files_of(path, tell=True)
    base = root if root.is_dir() else root.parent
    documents: list[Document] = []
    aside: list[Reject] = []
    for file in files:
        name = "stdin" if file == "-" else Path(file).relative_to(base).as_posix()
        try:
            documents += [
                _named(document, name)
                for document in read_documents(file, text_field=text_field, whole=True)
            ]
        except (InputError, RecordError) as error:
            aside.append(Reject(name, _line(error), str(error)))
    if not documents:
        raise InputError(
            f"{str(path)!r} holds no document that can be read: {aside[0].error}"
            if aside
            else f"{str(path)!r} holds no document; give a file or folder with some"
        )
    seen: set[str] = set()
    for document in documents:
        if str(document.id) in seen:
            raise InputError(
                f"{document.file}:{document.line}: the id {document.key} is given twice; give each "
                "document an id of its own"
            )
        seen.add(str(document.id))
    return Corpus(documents, aside)


def _named(document: Document, name: str) -> Document:
    """Return a document whose id, where it is its file's name, has the folders before it."""
    own = str(document.id)
    if own == document.file or own == f"{document.file}:{document.line}":
        own = f"{name}{own.removeprefix(document.file)}"
    return Document(own, document.text, name, document.line, document.metadata)


def _line(error: Exception) -> int:
    found = re.search(r":(\d+): ", str(error))
    return int(found[1]) if found else 1


def documents_digest(documents: Sequence[Document]) -> str:
    """Return what tells these documents from others: their ids, titles and texts."""
    seen = hashlib.sha256()
    for document in documents:
        parts = (str(document.id), _title(document), document.text)
        seen.update("\0".join(parts).encode("utf-8", "surrogatepass") + b"\1")
    return seen.hexdigest()[:32]


def cut(documents: Sequence[Document], tokenizer: Any, size: int) -> Iterator[Chunk]:
    """Yield the chunks of documents: at headings, then whole sentences up to a number of tokens.

    A chunk whose passage an earlier one has is left out.

    Args:
        documents: in order.
        tokenizer: a fast one of transformers, by which tokens are counted.
        size: tokens of a chunk.
    """
    chunking = Chunking("headings", size)
    seen: set[str] = set()
    for document in documents:
        title = _title(document)
        text = _without_title(document.text, title)
        parts, heading = [], ""
        for start, end in chunking.spans(text, tokenizer):
            piece = text[start:end]
            if (words := _heading_at(text, start, end)) is not None:  # a section begins
                heading = "" if words == title else words
                piece = piece.partition("\n")[2]
            if len(body := " ".join(piece.split())) >= _FEWEST:
                parts.append((heading, body))
        for number, (heading, body) in enumerate(parts):
            own = str(document.id) if len(parts) == 1 else f"{document.id}#{number + 1}"
            chunk = Chunk(own, str(document.id), title, heading, body, number)
            if chunk.passage not in seen:
                seen.add(chunk.passage)
                yield chunk


def _title(document: Document) -> str:
    """Return a document's title: its field, its first heading, or the first words of a page."""
    held = document.metadata.get("title")
    if isinstance(held, str):
        return " ".join(held.split())
    first, _, rest = document.text.lstrip().partition("\n")
    words = _heading_at(document.text)
    if words is not None:
        return words
    form = file_form(Path(document.file))[0]
    page = form is not None and FORMS[form].paragraphs and FORMS[form].bare
    return first.strip() if page and rest and len(first) <= _LONGEST_TITLE else ""


def _without_title(text: str, title: str) -> str:
    """Return a text that does not begin with its title, which stands apart."""
    rest = text.lstrip()
    if title and _heading_at(text) == title:
        return rest.partition("\n")[2]
    return rest[len(title) :].lstrip() if title and rest.startswith(title) else text


def _heading_at(text: str, start: int | None = None, end: int | None = None) -> str | None:
    """Return the words of the heading that begins at a place; None: none does.

    What stands before it on its line counts: number signs further in are code, or words.
    """
    start = len(text) - len(text.lstrip()) if start is None else start
    begin = text.rfind("\n", 0, start) + 1
    line = text[begin:end].partition("\n")[0]
    return None if text[begin:start].strip() else heading_words(line)
