"""Reader of PDF, by pypdf."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from embedlm.data.rows import FileRow, Reading
from embedlm.errors import InputError, require

__all__ = ["read_pdf"]


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
