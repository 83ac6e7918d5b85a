"""Keys of texts: equal for texts that differ in white space alone."""

from __future__ import annotations

import hashlib

__all__ = ["KEY", "text_key"]

KEY = 16
"""Bytes of a text's key: two of a billion texts share one with a chance of 1 in 10^21."""


def text_key(text: str) -> bytes:
    """Return what texts have in common that differ in white space alone."""
    joined = " ".join(text.split())
    return hashlib.blake2b(joined.encode("utf-8"), digest_size=KEY).digest()
