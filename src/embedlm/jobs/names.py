"""Names that no file can have, refused before anything is done with them."""

from __future__ import annotations

import os
from pathlib import Path

from embedlm.errors import InputError

__all__ = ["check_name"]

_LONGEST_PATH = 4000
_LONGEST = 255
"""Bytes of a file's name on every common file system."""


def check_name(path: str | Path, what: str = "") -> None:
    """Refuse a name that is empty, too long, not Unicode, or holds NUL.

    Args:
        path: the file or folder.
        what: what it is, for the message: "input", "output", "rejects file".

    Raises:
        InputError: no file can have this name.
    """
    text = os.fspath(path)
    name = f"the {what}'s name" if what else "the name"
    if not text:
        raise InputError(f"{name} is empty; name a file, a folder or a model")
    if "\0" in text:
        raise InputError(f"{name} {text!r} holds NUL; give another one")
    try:
        parts = [part.encode("utf-8") for part in Path(text).parts]
    except UnicodeEncodeError as error:
        raise InputError(f"{name} {text!r} is not valid UTF-8; give another one") from error
    longest, whole = max(map(len, parts), default=0), len(text.encode("utf-8"))
    if longest > _LONGEST or whole > _LONGEST_PATH:
        raise InputError(
            f"{name} {text[:40]!r}... is too long; a file's name may have {_LONGEST} bytes, and "
            f"a path {_LONGEST_PATH:,}"
        )
