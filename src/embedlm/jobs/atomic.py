"""Files and folders that appear whole or not at all.

Everything is written under a temporary name in the folder of its target, synced to the disk, and
renamed. A process that is killed leaves the old content, and at most a file or folder that ends in
`.tmp`. Such a folder is removed once a later process has written its target.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from embedlm.errors import EmbedLMError, JobError

__all__ = [
    "TEMPORARY",
    "disk_errors",
    "new_folder",
    "replace_folder",
    "set_aside",
    "write_file",
    "write_text",
]

TEMPORARY = ".tmp"
"""Ending of the name of an unfinished file or folder."""
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
"""A disk that is read-only, or a folder of another user."""


def write_file(path: Path, write: Callable[[BinaryIO], object], *, shared: bool = False) -> None:
    """Write a file atomically; the file that was there stays until the new one is whole.

    Args:
        path: the file.
        write: gets the open temporary file and writes all of it.
        shared: several processes and threads may write the file at once, so each takes its own
            temporary name.
    """
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    unfinished = path.with_name(f"{path.name}{writer}{TEMPORARY}")
    try:
        with unfinished.open("wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk does not say whose
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file atomically, as UTF-8."""
    write_file(path, lambda handle: handle.write(text.encode("utf-8")), shared=shared)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the target's place when the block ends without an error.

    The target's name is resolved first: of `m/../m` nothing would be found once `m` is renamed.
    """
    target = target.resolve()
    with _temporary(target) as unfinished:
        try:
            yield unfinished
            # mkdtemp's folders, and some libraries' files, are for their owner alone.
            mask = _umask()
            os.chmod(unfinished, 0o777 & ~mask)
            for path in unfinished.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    os.chmod(path, 0o666 & ~mask)
            replace_folder(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    _remove_left(target)


def replace_folder(finished: Path, target: Path) -> None:
    """Give a finished folder the target's name; a folder of that name is removed afterwards.

    Both must be in one parent folder.
    """
    for folder, _, names in os.walk(finished):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    if not target.is_dir():
        os.replace(finished, target)
    else:
        before = _made(target)
        with _in_use(target):
            os.replace(target, before)
            try:
                os.replace(finished, target)
            except BaseException:
                os.replace(before, target)
                raise
            shutil.rmtree(before, ignore_errors=True)
    _sync(target.parent)


def _made(target: Path) -> Path:
    return Path(tempfile.mkdtemp(TEMPORARY, f".{target.name}.", target.parent))


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Yield a new folder beside a target, which no other process takes for one that was left."""
    while True:
        folder = _made(target)
        with _in_use(folder):
            if folder.exists():  # else another process removed it before it was in use
                yield folder
                return


@contextmanager
def _in_use(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Mark a folder, whatever it is renamed to, as used by this process to the end of the block.

    Yields whether it is: without `wait`, another process may be using it. Windows has no marks.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield wait
        return
    try:
        with suppress(OSError):  # used by another, or a disk that has no locks
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            wait = True
        yield wait
    finally:
        os.close(handle)


def _remove_left(target: Path) -> None:
    """Remove the unfinished folders of a target, now written, that killed processes have left."""
    name = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}" + re.escape(TEMPORARY))
    for path in target.parent.iterdir():
        if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with _in_use(path, wait=False) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path, endings: Sequence[str] = ("",)) -> Path:
    """Rename damaged files that belong together to the first free name and return that name.

    Args:
        path: the main file; it becomes `NAME.damaged-1`, or the next number that is free.
        endings: of the names of all files, e.g. `("", "-wal")`; those that are missing are skipped.
    """
    count = 1
    while (aside := path.with_name(f"{path.name}.damaged-{count}")).exists():
        count += 1
    for ending in endings:
        file = path.with_name(path.name + ending)
        if file.exists():
            os.replace(file, aside.with_name(aside.name + ending))
    return aside


@contextmanager
def disk_errors(target: Path, kept: str, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn an error of the disk into a JobError that says what is kept and what to do.

    Args:
        target: what is written; named where the error names no file.
        kept: sentence that says what is kept and how the job goes on once there is room. It is left
            out where the place cannot be written to, which no room changes.
        also: errors by which a library tells a failed write.
    """
    try:
        yield
    except EmbedLMError:  # some are OSErrors too
        raise
    except OSError as error:
        if error.errno is None:
            raise
        file = error.filename or target
        if error.errno in _FULL:
            raise JobError(
                f"no space left while writing {file} ({error.strerror}). {kept}"
            ) from error
        if error.errno in _REFUSED:
            raise JobError(
                f"{file} cannot be written: {error.strerror}. This user may not write to that disk "
                "or folder; allow it, or name another place, and run the same command again. What "
                "is finished stays as it is"
            ) from error
        raise JobError(f"{file} cannot be written: {error.strerror}. {kept}") from error
    except also as error:
        raise JobError(f"{target} cannot be written: {error}. {kept}") from error


def _sync(path: Path) -> None:
    """Make a file's content, or the renames in a folder, last through a power cut."""
    with suppress(OSError):  # where the system cannot; the write itself has told its errors
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """Return the mask of new files; it can be read only by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
