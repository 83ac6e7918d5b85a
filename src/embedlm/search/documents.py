"""Documents of files, folders, records and BEIR sets; each id is given back as it came.

Shapes: n documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from embedlm.data import Source, existing
from embedlm.data.forms import FORMS, check_used, file_form
from embedlm.data.images import IMAGE_SUFFIXES, ImageFile, image_file, read_image
from embedlm.data.rows import FileRow, shortened
from embedlm.data.source import WHICH_FIELD
from embedlm.errors import EmbedLMError, InputError, RecordError
from embedlm.jobs import Reject
from embedlm.search.passages import Fits, files_of, prose, whole_text

__all__ = ["Document", "document_key", "read_documents"]

Id = str | int
TakesBad = Callable[[Reject], None]
_BEIR = "corpus.jsonl"


def document_key(id: Id) -> str:
    """Return an id as JSON, which tells 1 from "1"."""
    return json.dumps(id, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A text, an image or both, with their id and metadata."""

    id: Id
    text: str
    file: str
    line: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    image: ImageFile | None = None
    """Named by its path from the folder that is read."""

    @property
    def key(self) -> str:
        """The id, see `document_key`."""
        return document_key(self.id)


def read_documents(
    path: str | Path,
    *,
    text_field: str = "text",
    id_field: str | None = None,
    image_field: str | None = None,
    images: bool = False,
    whole: bool = False,
    quoting: bool | None = None,
    headings: bool = True,
    fits: Fits | None = None,
    bad: TakesBad | None = None,
) -> Iterator[Document]:
    """Yield the documents of a file, of a folder and below it, or of a BEIR folder, in order.

    A record (.jsonl, .csv, .tsv, .parquet) is a document; its other fields are metadata. A corpus
    of BEIR (a folder with corpus.jsonl) has the fields _id, title and text. Of prose (.txt, .md,
    .html, .pdf) each paragraph with its headings is a document, or the whole file, by choice.
    Records without an id, and prose, are called by file and line, or by file. An image is a
    document called by its file; one that a record names goes with the record's text.

    Args:
        path: the file or folder.
        text_field: field or column with the text.
        id_field: field with the id; None: `id` or `_id`, where a record has one.
        image_field: field with the path of an image, inside the folder of its file.
        images: whether files that are images are read; a folder's are left out otherwise.
        whole: a file of prose is one document.
        quoting: whether cells of a .csv or .tsv may stand in quotes.
        headings: whether headings go with the paragraphs below them, see `passages.prose`; without
            it each is a document.
        fits: whether a paragraph may stand whole, see `passages.prose`.
        bad: takes records, and files of prose, that cannot be read, and ids that are given twice;
            None: the first one is an error.

    Raises:
        InputError: nothing is there; an option that no file can use; an id that is given twice, or
            is neither text nor a whole number.
        RecordError: a bad record, with file and line.
    """
    root = Path(path)
    corpus = existing(root / _BEIR) if root.is_dir() else None
    if corpus is not None:
        files, beir = [str(corpus)], True
    else:
        files, beir = files_of(path, tell=True, images=images), False
    forms = [_form(file, images) for file in files]
    check_used(str(path), forms, text_field=text_field, quoting=quoting, image_field=image_field)
    fields = _Fields(text_field, id_field, image_field, beir)
    base = root if root.is_dir() else root.parent
    seen: set[str] = set()
    aside = _Aside(bad)
    for file, form in zip(files, forms, strict=True):
        name = "stdin" if file == "-" else Path(file).relative_to(base).as_posix()
        if form not in FORMS:
            found = _picture(file, name)
        elif FORMS[form].bare:
            found = _prose(file, name, whole, headings, fits)
        else:
            quoted = None if FORMS[form].quoting is None else quoting
            source = Source(file, quoting=quoted)
            found = _records(source, name, fields, aside)
        for document in _readable(found, name, aside):
            if document.key in seen:
                told = (
                    f"{document.file}:{document.line}: the id {document.key} is given twice; give "
                    "each document an id of its own"
                )
                aside.take(name, document.line, InputError(told), document.text)
                continue
            seen.add(document.key)
            yield document
    _check_all(path, fields, aside, empty=not seen)


def _check_all(path: str | Path, fields: _Fields, aside: _Aside, *, empty: bool) -> None:
    """Refuse a source in which nothing was there, or no image where a field was to name them."""
    if fields.image is not None and not fields.image_found:
        raise InputError(
            f"no record of {str(path)!r} has the field {fields.image!r}, which was to hold images "
            "(--image-field, image_field=); name the one that does"
        )
    if empty:
        raise InputError(
            f"{str(path)!r} holds no text to index; give a file or folder with some"
            + (f" ({aside.first})" if aside.first is not None else "")
        )


@dataclass(slots=True)
class _Fields:
    """Which fields of records are read."""

    text: str
    id: str | None
    image: str | None
    beir: bool
    """Whether the title goes before the text."""
    image_found: bool = False
    """Whether any record has had the field of images."""


def _form(file: str, images: bool) -> str:
    """Return the form of a file: of `FORMS`, or how an image's name ends.

    Raises:
        InputError: an image, where none is read.
    """
    form = file_form(Path(file))[0]
    suffix = Path(file).suffix.lower()
    if form is not None or suffix not in IMAGE_SUFFIXES:
        return form or "txt"
    if not images:
        raise InputError(
            f"{file!r} is an image, and the model reads texts alone; take one that reads images "
            "(recipes qwen3-vl-embedding, gme, vlm2vec, colqwen2, colpali and clip)"
        )
    return suffix.removeprefix(".")


class _Aside:
    """Takes what cannot be read; without a taker it is an error."""

    def __init__(self, bad: TakesBad | None) -> None:
        self.bad = bad
        self.first: EmbedLMError | None = None

    def take(self, file: str, line: int, error: EmbedLMError, record: Any = "") -> None:
        """Set aside a record or a file."""
        if self.bad is None:
            raise error
        self.first = self.first or error
        self.bad(Reject(file, line, str(error), shortened(record)))


def _readable(found: Iterator[Document], name: str, aside: _Aside) -> Iterator[Document]:
    """Yield the documents of a file up to where it cannot be read."""
    try:
        yield from found
    except (InputError, RecordError) as error:
        aside.take(name, 1, error)


def _prose(
    file: str, name: str, whole: bool, headings: bool, fits: Fits | None
) -> Iterator[Document]:
    if not whole:
        lines: dict[int, int] = {}
        for passage in prose(file, headings=headings, fits=fits):
            number = lines[passage.line] = lines.get(passage.line, 0) + 1
            more = f".{number}" if number > 1 else ""  # a long paragraph is cut into several
            id_ = f"{name}:{passage.line}{more}"
            yield Document(id_, passage.text, name, passage.line, {"file": name})
        return
    text = whole_text(file)
    if text.strip():
        yield Document(name, text, name, 1, {"file": name})


def _picture(file: str, name: str) -> Iterator[Document]:
    yield Document(name, "", name, 1, {"file": name}, read_image(Path(file), name))


def _records(source: Source, name: str, fields: _Fields, aside: _Aside) -> Iterator[Document]:
    with closing(source.rows()) as rows:  # an error leaves no file open
        for row in rows:
            try:
                yield from _record(row, source, name, fields)
            except RecordError as error:
                aside.take(name, row.line, error, row.raw or row.value)


def _record(row: FileRow, source: Source, name: str, fields: _Fields) -> Iterator[Document]:
    """Yield the document of a row, unless its text is blank and it has no image."""
    where = f"{source.name}:{row.line}"
    record = {fields.text: row.value} if isinstance(row.value, str) else row.value
    error, image = row.error, None
    if error is None and not isinstance(record, dict):
        error = f"a JSON {type(record).__name__}, not an object with {fields.text!r}"
    if error is None and fields.image is not None:
        fields.image_found |= fields.image in record
        try:
            image = image_file(record.get(fields.image), fields.image, source.path)
        except InputError as wrong:
            error = str(wrong)
    text: Any = "" if error is not None else record.get(fields.text)
    if text is None and image is not None:
        text = ""
    if not isinstance(text, str):
        error = f"no text in the field {fields.text!r}; there are: {', '.join(record)}. "
        error += WHICH_FIELD
    if error is not None:
        raise RecordError(f"{where}: {error}. Correct the record")
    used = {fields.text, fields.image}
    if fields.beir and record.get("title"):
        text = f"{record['title']} {text}"
        used.add("title")
    names = [fields.id] if fields.id is not None else ["id", "_id"]
    held = next((one for one in names if record.get(one) is not None), None)
    if held is None and fields.id is not None:
        raise RecordError(f"{where}: no id in the field {fields.id!r}. Correct the record")
    id_ = f"{name}:{row.line}" if held is None else _checked_id(record[held], where)
    if text.strip() or image is not None:
        metadata = {k: v for k, v in record.items() if k not in used and k != held}
        document = Document(id_, text, name, row.line, _plain(metadata))
        yield document if image is None else replace(document, **_beside(image, text, name))


def _beside(image: ImageFile, text: str, name: str) -> dict[str, Any]:
    """Return what an image changes of a record's document."""
    path = (PurePosixPath(name).parent / PurePosixPath(image.name)).as_posix()
    return {"text": text if text.strip() else "", "image": image._replace(name=path)}


def _checked_id(value: Any, where: str) -> Id:
    if isinstance(value, bool | float | list | dict | bytes):
        raise RecordError(
            f"{where}: the id is {str(value)[:40]!r}, a {type(value).__name__}; give a text, a "
            "whole number or a UUID"
        )
    return value if isinstance(value, int) else str(value)


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON can hold it (a column of a table may hold dates)."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(metadata, default=str, allow_nan=False))
    except ValueError as error:
        raise RecordError(f"the metadata {str(metadata)[:60]} hold NaN or infinity") from error
    return found
