"""One process at a time: the lock of a job's folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from embedlm.errors import InputError, JobError

__all__ = ["check_own", "locked"]


def check_own(folder: Path, lock: Path, what: str) -> None:
    """Refuse a folder that holds something, and in which no run has ever held the lock.

    Args:
        folder: it need not be there.
        lock: the file in it that each run locks, and that stays.
        what: output folder, work folder, ...: what it is, for the message.

    Raises:
        InputError: a run could overwrite or remove what it holds.
    """
    foreign = folder.is_dir() and not lock.is_file() and next(folder.iterdir(), None)
    if foreign:
        raise InputError(
            f"the {what} {str(folder)!r} holds {foreign.name!r}, which no run has written; give a "
            "new or an empty folder"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the lock file and its folder, and hold the lock to the end of the block.

    The system lets go of the lock when the process ends, however it ends.

    Raises:
        JobError: another process holds the lock.
    """
    with _taken(path) or nullcontext():
        yield


def _taken(path: Path) -> BinaryIO | None:
    """Return the open file that holds the lock; None on Windows, which has none."""
    try:
        import fcntl
    except ImportError:
        _make(path.parent)
        return None
    while True:
        _make(path.parent)
        try:
            handle = path.open("a+b")
        except FileNotFoundError:  # another process has just finished and removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise JobError(
                f"another process is writing this output (it holds {path}); wait for it, stop it, "
                "or choose another output"
            ) from error
        if path.exists() and os.fstat(handle.fileno()).st_ino == path.stat().st_ino:
            return handle
        handle.close()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise JobError(
            f"the folder {folder}, which keeps an unfinished output, cannot be made: "
            f"{error.strerror}; choose another output"
        ) from error
