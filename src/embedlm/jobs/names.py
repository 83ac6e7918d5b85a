"""Names that no file can have, and outputs that are inputs: refused before anything is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embedlm.errors import InputError

__all__ = [
    "check_apart",
    "check_file",
    "check_name",
    "check_new",
    "check_parent",
    "make_folder",
    "real_path",
]

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


def real_path(path: str | Path) -> Path:
    """Return a path whose links are followed, as far as they lead anywhere.

    `Path.resolve` raises RuntimeError for a link that leads to itself (before Python 3.13).
    """
    return Path(os.path.realpath(path))


def check_apart(output: str | Path, inputs: Iterable[Any], what: str = "output") -> None:
    """Refuse an output that would replace what is read, or that would be read by the next run.

    Args:
        output: a file or a folder, which need not be there yet.
        inputs: files and folders; what is no path (values, a model in memory, None) and what is
            not there (a hub id, "-") is passed over, unless it has the output's very name.
        what: which output it is, for the message.

    Raises:
        InputError: the output is an input, lies in a folder that is one, or holds one.
    """
    target = real_path(output)
    for one in inputs:
        if not isinstance(one, str | Path) or not str(one):
            continue
        source = real_path(one)
        if source == target or (target.exists() and source.exists() and source.samefile(target)):
            raise InputError(
                f"the {what} {str(output)!r} is an input, too, and would replace it; give the "
                f"{what} another name"
            )
        if source in target.parents and source.is_dir():
            raise InputError(
                f"the {what} {str(output)!r} lies inside the input {str(one)!r}, and would become "
                f"a part of it; give the {what} a place outside it"
            )
        if target in source.parents and source.exists():
            raise InputError(
                f"the {what} {str(output)!r} holds the input {str(one)!r}, which is read; give the "
                f"{what} another place"
            )


def check_new(output: str | Path) -> None:
    """Refuse an output folder in which something would be overwritten.

    Raises:
        InputError: it is a file, or not empty.
    """
    check_name(output, "output")
    target = Path(output)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(
            f"the output {str(output)!r} is there already and would be overwritten; give another "
            "folder, or remove it first"
        )


def check_parent(output: Path) -> None:
    """Refuse an output whose folder is not there, or takes no files.

    Raises:
        InputError: it is not there, is a file, or cannot be written to.
    """
    folder = real_path(output).parent
    if not folder.is_dir():
        raise InputError(
            f"the folder of the output, {output.parent}, is not there; make it first, or name "
            "another"
        )
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"nothing can be created in the folder of the output, {output.parent}; name another"
        )


def check_file(output: str | None, suffixes: Sequence[str], inputs: Iterable[Any] = ()) -> None:
    """Refuse, before anything is computed, a file that cannot be written.

    Args:
        output: the file; None: none is written.
        suffixes: endings that its name may have.
        inputs: files and folders that are read.

    Raises:
        InputError: another ending, a folder, a folder that is not there, or an input.
    """
    if output is None:
        return
    check_name(output, "output")
    if not output.endswith(tuple(suffixes)):
        raise InputError(
            f"the output {output!r} has another ending than {', '.join(suffixes)}; end its name in "
            f"{suffixes[0] if len(suffixes) == 1 else 'one of these'}"
        )
    if Path(output).is_dir():
        raise InputError(f"the output {output!r} is a folder; give a file's name")
    check_parent(Path(output))
    check_apart(output, inputs)


def make_folder(folder: Path, what: str) -> None:
    """Make a folder and those above it, unless they are there.

    Args:
        folder: its path.
        what: output folder, work folder, ...: what it is, for the message.

    Raises:
        InputError: it cannot be made.
    """
    check_name(folder, what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the {what} {str(folder)!r} cannot be made: {error.strerror}; give another"
        ) from error
