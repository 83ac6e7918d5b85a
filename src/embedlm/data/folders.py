"""The files of a folder, and of the folders below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from embedlm.errors import InputError

__all__ = ["visible_files"]


def visible_files(root: Path) -> Iterator[Path]:
    """Yield the files in a folder and below it that are not hidden, nor in a hidden folder.

    Those of a folder come before those below it, each in the order of their names.

    Raises:
        InputError: a folder that cannot be read.
    """
    for folder, inner, names in os.walk(root, onerror=_unread):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _unread(error: OSError) -> NoReturn:
    raise InputError(
        f"the folder {error.filename!r} cannot be read ({error.strerror}); let it be read, or move "
        "it elsewhere"
    ) from error
