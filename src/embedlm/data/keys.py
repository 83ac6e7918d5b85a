"""Keys of texts: equal for texts that differ in white space, case and forms of characters alone."""

from __future__ import annotations

import hashlib

from embedlm.data.words import folded

__all__ = ["KEY", "text_key"]

KEY = 16
"""Bytes of a text's key: two of a billion texts share one with a chance of 1 in 10^21."""
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Signs that are not shown: where a word may be parted, a space of no width, a byte-order mark."""


def text_key(text: str) -> bytes:
    """Return what texts have in common that are the same to a reader.

    White space, case, signs that are not shown, and how a character is written (composed or not,
    wide or narrow) make no difference.
    """
    if not text.isascii():
        text = text.translate(_UNSEEN)
    joined = " ".join(folded(text).split())
    return hashlib.blake2b(joined.encode("utf-8"), digest_size=KEY).digest()
