"""The folder of an unfinished job: what it is, which blocks are done, and who works on it.

    OUT.part/
      manifest.json      source, model and options; a later run must have the same
      lock               held by the process at work
      ranges.npy         int8 and uint8: minimum and maximum of each dimension
      blocks/00000000.npz ...   finished blocks, each written aside, synced, then renamed

A block is there whole or not at all, so a killed job loses at most the block at hand.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from embedlm.errors import JobError

__all__ = ["Block", "Job", "disk_errors", "write_whole"]

Block = dict[str, npt.NDArray[Any]]
"""The arrays of a block, by name."""

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_OURS = ("blocks", "ranges.npy", "kernels", "done", "manifest.json", "lock")
"""What a job's folder holds, in the order in which it goes."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, sync it, and rename it: it is there whole or not."""
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@contextmanager
def disk_errors(part: Path) -> Iterator[None]:
    """Turn a failed write into a JobError that says what is kept and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        kept = f"Finished blocks are kept in {part}; run the same command again to go on"
        if error.errno in _FULL:
            raise JobError(
                f"no space left while writing {error.filename or part} ({error.strerror}). {kept} "
                "once there is room (the output needs its own size again while it is put together)"
            ) from error
        raise JobError(
            f"cannot write {error.filename or part}: {error.strerror}. {kept}"
        ) from error


class Job:
    """The blocks of one unfinished output; made by `Job.open`."""

    def __init__(self, part: Path) -> None:
        self.part = part
        self.blocks = part / "blocks"
        self.kept = 0
        """How many blocks an earlier run had finished when this one began."""

    @classmethod
    @contextmanager
    def open(cls, target: Path, manifest: Mapping[str, Any], *, restart: bool) -> Iterator[Job]:
        """Hold the job of an output file, new or left by an earlier run.

        Raises:
            JobError: another process is at work on it, or it was begun with other settings.
        """
        job = cls(target.with_name(target.name + ".part"))
        with disk_errors(job.part):
            lock = _lock(job.part)
        with lock or nullcontext():
            with disk_errors(job.part):
                job._begin(dict(manifest), restart)
            try:
                yield job
            except BaseException:
                if not job.started():
                    job.remove()
                raise

    def _begin(self, manifest: dict[str, Any], restart: bool) -> None:
        file = self.part / "manifest.json"
        strange = sorted({p.name for p in self.part.iterdir() if p.suffix != ".tmp"} - {*_OURS})
        if strange:
            raise JobError(
                f"{self.part} is where the unfinished output would go, but it holds other files "
                f"({strange[0]}); move it away or choose another output"
            )
        changed = self._changed(file, manifest) if file.is_file() else "all"
        if changed and not restart and self.started():
            raise JobError(
                f"{self.part} holds an unfinished job that differs from this one: {changed}. To go "
                "on, give it what it was begun with. To begin anew use --restart (restart=True), "
                "or choose another output"
            )
        if changed or restart:
            self._clear(_OURS[:-1])
        for left in [*self.part.glob("*.tmp"), *self.blocks.glob("*.tmp")]:
            left.unlink()
        self.blocks.mkdir(exist_ok=True)
        if not file.is_file():
            text = json.dumps(manifest, indent=1, ensure_ascii=False)
            write_whole(file, lambda handle: handle.write(text.encode()))
        self.kept = sum(1 for _ in self.blocks.glob("*.npz"))

    def _clear(self, names: Sequence[str]) -> None:
        for name in names:
            path = self.part / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _changed(self, file: Path, manifest: dict[str, Any]) -> str:
        """Return what differs from the manifest of the job that is there; "" for nothing."""
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            return f"its manifest.json cannot be read ({error})"
        old, new = _flat(before), _flat(manifest)
        changed = [
            f"{key} was {_brief(old.get(key))}, is {_brief(new.get(key))}"
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)
        ]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        return "; ".join(changed[:3]) + more

    def started(self) -> bool:
        """Tell whether anything is there that took work to make."""
        return (self.part / "manifest.json").is_file() and any(self.blocks.glob("*.npz"))

    # -- blocks -------------------------------------------------------------------------------

    def _path(self, index: int) -> Path:
        return self.blocks / f"{index:08d}.npz"

    def load(self, index: int, names: tuple[str, ...] = ()) -> Block | None:
        """Return a finished block; None where it is missing or damaged and must be done again."""
        try:
            with self._path(index).open("rb") as handle, np.load(handle) as file:
                return {name: file[name] for name in names or file.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            self._path(index).unlink(missing_ok=True)
            return None

    def save(self, index: int, block: Block) -> None:
        """Write a finished block; it is on the disk when this returns."""
        buffer = io.BytesIO()
        save: Any = np.savez
        save(buffer, **block)
        with disk_errors(self.part):
            write_whole(self._path(index), lambda handle: handle.write(buffer.getbuffer()))

    def read(self, index: int, names: tuple[str, ...] = ()) -> Block:
        """Return a block that must be there, or only some of its arrays."""
        block = self.load(index, names)
        if block is None:
            raise JobError(
                f"block {index} in {self.part} was damaged after it was written; run the same "
                "command again to encode it anew"
            )
        return block

    def count(self) -> int:
        """Return one more than the number of the last finished block."""
        return max((int(path.stem) + 1 for path in self.blocks.glob("*.npz")), default=0)

    # -- ranges -------------------------------------------------------------------------------

    def ranges(self) -> npt.NDArray[np.float32] | None:
        """Return the ranges fixed for int8 and uint8, if they are yet."""
        file = self.part / "ranges.npy"
        return np.load(file, allow_pickle=False) if file.is_file() else None

    def fix_ranges(self, ranges: npt.NDArray[np.float32]) -> None:
        """Fix the ranges for all blocks."""
        with disk_errors(self.part):
            write_whole(self.part / "ranges.npy", lambda handle: np.save(handle, ranges))

    def kernels(self) -> str | None:
        """Return which kernels the job runs on, where that is decided."""
        file = self.part / "kernels"
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def fix_kernels(self, kernels: str) -> None:
        """Decide it for all blocks."""
        with disk_errors(self.part):
            write_whole(self.part / "kernels", lambda handle: handle.write(kernels.encode()))

    # -- end ----------------------------------------------------------------------------------

    def finished(self) -> dict[str, Any] | None:
        """Return the report of a job whose output is written but whose folder is not yet gone."""
        file = self.part / "done"
        found: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
        return found

    def finish(self, report: Mapping[str, Any]) -> None:
        """Mark the output as written, then remove the folder."""
        text = json.dumps(report)
        with disk_errors(self.part):
            write_whole(self.part / "done", lambda handle: handle.write(text.encode()))
        self.remove()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        self._clear(_OURS)
        self.part.rmdir()


def _lock(part: Path) -> BinaryIO | None:
    """Make the folder and take its lock; the system lets go when the process ends, however."""
    part.mkdir(exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        return None
    path = part / "lock"
    while True:
        part.mkdir(exist_ok=True)
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


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return out


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
