"""What an index holds already, by which a passage that has moved is known again.

A passage is known by its key and digest. One whose place or metadata have changed keeps its
vectors: they depend on its text alone, and late chunking's on the whole document and the place in
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from embedlm.search.catalogue import Catalogue, Entry

__all__ = ["Known", "digest_of"]


def digest_of(
    text: str,
    metadata: Mapping[str, Any],
    file: str,
    line: int,
    whole: str,
    start: int,
    image: tuple[str, str] | None = None,
) -> str:
    """Return what tells a passage from a changed one.

    Args:
        text: of the passage.
        metadata: of its document.
        file: of its document.
        line: on which it begins.
        whole: the document's text, where vectors depend on it; else "".
        start: the passage's first character in the document.
        image: its path and a hash of its content; None: there is none.
    """
    facts = [text, dict(metadata), file, line, whole, start, *(image or ())]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class Known:
    """The passages of an index."""

    def __init__(self, catalogue: Path | None, analyzer: str) -> None:
        """Read the digests of a catalogue; None: the index is new."""
        self._catalogue = None if catalogue is None else Catalogue.open(catalogue, analyzer)
        self._digests = {} if self._catalogue is None else self._catalogue.digests()
        self._by_text: dict[bytes, str] | None = None
        self.parts: dict[str, list[str]] = {}
        """The keys of each document's passages."""
        for key in self._digests:
            self.parts.setdefault(_document_of(key), []).append(key)

    def has(self, entry: Entry) -> bool:
        """Tell whether the index holds a passage as it is."""
        return self._digests.get(entry.key) == entry.digest

    def source(self, entry: Entry, whole: str, start: int) -> str | None:
        """Return the key of a passage that has the vectors of this one; None: there is none.

        Args:
            entry: the passage.
            whole: see `digest_of`.
            start: see `digest_of`.
        """
        if self._catalogue is None:
            return None
        for key in (entry.key, self._texts().get(_text_key(entry.text, entry.content))):
            held = self._catalogue.entries([key]).get(key) if key in self._digests else None
            if held is None or (held.text, held.content) != (entry.text, entry.content):
                continue
            if not whole or held.digest == digest_of(
                held.text, held.metadata, held.file, held.line, whole, start
            ):
                return key
        return None

    def _texts(self) -> dict[bytes, str]:
        """Return a key for each text, and image, of the index, once one is looked for."""
        if self._by_text is None:
            assert self._catalogue is not None
            self._by_text = {}
            for key, text, content in self._catalogue.texts():
                self._by_text.setdefault(_text_key(text, content), key)
        return self._by_text

    def of_files(self, files: Collection[str]) -> set[str]:
        """Return the documents of some files."""
        if self._catalogue is None or not files:
            return set()
        return {entry.document for entry in self._catalogue if entry.file in files}

    def close(self) -> None:
        """Let go of the catalogue."""
        if self._catalogue is not None:
            self._catalogue.close()


def _text_key(text: str, content: str) -> bytes:
    whole = f"{text}\0{content}" if content else text
    return hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _document_of(key: str) -> str:
    """Return the document of a passage's key."""
    head, sign, number = key.rpartition("#")
    return head if sign and number.isdigit() and not key.endswith('"') else key
