"""Names that no file can have, refused before anything is done with them."""

from __future__ import annotations

import os
from pathlib import Path

from embedlm.errors import InputError

__all__ = ["check_name"]

_LONGEST_PATH = 4000
_LONGEST = 255
"""Bytes of a file's name on every common file system."""


def check_name(path: str | Path, what: str) -> None:
    """Refuse a name that is empty, too long, not Unicode, or holds NUL.

    Args:
        path: the file or folder.
        what: what it is, for the message: "input", "output", "rejects file".

    Raises:
        InputError: no file can have this name.
    """
    text = os.fspath(path)
    if not text:
        raise InputError(f"the {what}'s name is empty; name a file or folder, e.g. . for this one")
    if "\0" in text:
        raise InputError(f"the {what}'s name {text!r} holds NUL; give another name")
    try:
        parts = [part.encode("utf-8") for part in Path(text).parts]
    except UnicodeEncodeError as error:
        raise InputError(
            f"the {what}'s name {text!r} is not valid UTF-8; rename it, or give another name"
        ) from error
    if len(text.encode("utf-8")) > _LONGEST_PATH:
        raise InputError(f"the {what}'s name {text[:40]!r}... is too long; give a shorter one")
    longest = max(map(len, parts), default=0)
    if longest > _LONGEST:
        raise InputError(
            f"the {what}'s name {text[:40]!r}... has {longest} bytes; a name may have {_LONGEST}"
        )
