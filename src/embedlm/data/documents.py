"""Readers of documents that are not plain text: HTML by the standard library, PDF by pypdf."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any, BinaryIO

from embedlm.data.rows import FileRow, Reading, not_utf8
from embedlm.errors import InputError, require

__all__ = ["read_html", "read_pdf"]

_BLOCK_NAMES = """address article aside blockquote body br caption dd details div dl dt fieldset
figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html legend li main nav ol option p
pre section summary table tbody td tfoot th thead title tr ul"""
_BLOCKS = frozenset(_BLOCK_NAMES.split())
"""Elements at whose begin and end a paragraph ends."""
_HEADINGS = {"title": 1} | {f"h{level}": level + 1 for level in range(1, 7)}
"""The levels of headings: a page's title is above all others."""
_UNSEEN = frozenset(["script", "style", "template", "button"])
"""Elements whose content is no prose of the page."""
_OUTSIDE_NAMES = "article aside footer h1 h2 h3 h4 h5 h6 header main nav section table"
_OUTSIDE = frozenset(_OUTSIDE_NAMES.split())
"""Elements that never stand in a button: where one begins, a button was not closed."""


class _Paragraphs(HTMLParser):
    """Collects the paragraphs of a page, each with the line on which it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[FileRow] = []
        self._parts: list[str] = []
        self._line = self._level = 0
        self._unseen = self._buttons = self._drawings = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """End the paragraph before a block; enter an element that is not seen."""
        if tag in _BLOCKS:
            self.end_paragraph()
            self._level = 0 if self._drawings else _HEADINGS.get(tag, 0)
        self._drawings += tag == "svg"  # whose title is not the page's
        if tag in _OUTSIDE:
            self._leave_buttons(self._buttons)
        self._unseen += tag in _UNSEEN
        self._buttons += tag == "button"

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        """End the paragraph at a block that is empty."""
        if tag in _BLOCKS:
            self.end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        """End the paragraph with its block; leave an element that is not seen."""
        if tag in _BLOCKS:
            self.end_paragraph()
        if tag == "button":
            self._leave_buttons(min(1, self._buttons))
        elif tag in _UNSEEN:
            self._unseen = max(self._buttons, self._unseen - 1)
        if tag == "svg":
            self._drawings = max(0, self._drawings - 1)

    def _leave_buttons(self, count: int) -> None:
        self._buttons -= count
        self._unseen -= count

    def handle_data(self, data: str) -> None:
        """Add text to the paragraph."""
        if self._unseen:
            return
        if not self._line and data.strip():
            blank = data[: len(data) - len(data.lstrip())]
            self._line = self.getpos()[0] + blank.count("\n")
        self._parts.append(data)

    def end_paragraph(self) -> None:
        """Keep the paragraph that was collected, with each run of whitespace as one space."""
        text = " ".join("".join(self._parts).split())
        if text:
            self.rows.append(FileRow(self._line, text, heading=self._level))
        self._parts, self._line, self._level = [], 0, 0


def read_html(handle: BinaryIO, _: Reading) -> Iterator[FileRow]:
    """Yield a row for each paragraph, heading, item or table cell of an HTML page."""
    content = handle.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield FileRow(1, error=not_utf8(error), raw=content[:200])
        return
    page = _Paragraphs()
    page.feed(text)
    page.close()
    page.end_paragraph()
    yield from page.rows


def read_pdf(handle: BinaryIO, reading: Reading) -> Iterator[FileRow]:
    """Yield a row for each paragraph of a PDF; its number is the page's.

    Raises:
        MissingExtraError: pypdf is not installed.
        InputError: the file is not a PDF, or is encrypted.
    """
    pypdf = require("pypdf", "pdf")
    try:
        pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(handle.read())).pages]
    except Exception as error:  # a damaged file makes pypdf raise many kinds, KeyError among them
        raise InputError(
            f"{reading.name} cannot be read as PDF: {error}. Save it anew without a password, or "
            "give its text as .txt"
        ) from error
    rows = [
        FileRow(number, " ".join(paragraph.split()))
        for number, text in enumerate(pages, 1)
        for paragraph in re.split(r"\n\s*\n", text)
        if paragraph.strip()
    ]
    if not rows:
        yield FileRow(1, error="the PDF holds no text (its pages may be images); give its text")
    yield from rows
