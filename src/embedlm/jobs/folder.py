"""The folder of an unfinished job: what the job is, which blocks are done, and who works on it.

    OUT.part/
      manifest.json      input, model and options; a later run must have the same
      lock               held by the process at work
      fixed/NAME.npy     arrays and texts that are decided once, for all blocks
      fixed/NAME.txt
      blocks/00000000.npz ...   finished blocks, each written atomically
      done               the report, once the output is written

A block is there whole or not at all, so a killed job loses at most the blocks in progress.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from embedlm.errors import JobError
from embedlm.jobs.atomic import TEMPORARY, disk_errors, write_file, write_text
from embedlm.jobs.interrupts import keeping
from embedlm.jobs.json_files import read_json, write_json
from embedlm.jobs.lock import locked
from embedlm.jobs.manifest import change_of

__all__ = ["UNFINISHED", "Job"]

UNFINISHED = ".part"
"""Ending of the folder's name, which begins with the output's."""
_BLOCKS, _FIXED, _DONE, _MANIFEST, _LOCK = "blocks", "fixed", "done", "manifest.json", "lock"
_CONTENT = (_BLOCKS, _FIXED, _DONE, _MANIFEST, _LOCK)
"""All that a job's folder holds, in the order in which it is removed."""


class Job:
    """An unfinished output, as a row of blocks; made by `Job.open`."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder = folder
        self.suffix = suffix
        self.resumed = 0
        """Number of blocks that an earlier run had finished when this run began."""

    @classmethod
    @contextmanager
    def open(
        cls, target: Path, manifest: Mapping[str, Any], *, restart: bool, suffix: str = ".npz"
    ) -> Iterator[Job]:
        """Hold the job of an output, new or left by an earlier run.

        Args:
            target: the output.
            manifest: what the job is; see `jobs.manifest`.
            restart: discard what an earlier run has finished.
            suffix: the suffix of the blocks' files.

        Raises:
            JobError: another process is writing this output, the job was begun with another
                manifest, or the disk is full.
        """
        job = cls(target.with_name(target.name + UNFINISHED), suffix)
        with ExitStack() as stack:
            with job.disk_errors():
                stack.enter_context(locked(job.folder / _LOCK))
                job._begin(manifest, restart)
            try:
                with keeping(job.started):
                    yield job
            except BaseException:
                if not job.started():
                    job.remove()
                raise

    def _begin(self, manifest: Mapping[str, Any], restart: bool) -> None:
        file = self.folder / _MANIFEST
        names = {path.name for path in self.folder.iterdir() if path.suffix != TEMPORARY}
        foreign = sorted(names - {*_CONTENT})
        if foreign:
            raise JobError(
                f"{self.folder} is where the unfinished output would go, but it holds other files "
                f"({foreign[0]}); move it away or choose another output"
            )
        change = change_of(file, manifest) if file.is_file() else f"its {_MANIFEST} is missing"
        if change and not restart and self.started():
            raise JobError(
                f"{self.folder} holds an unfinished job that differs from this one: {change}. To "
                "go on, give it what it was begun with. To start over use --restart "
                "(restart=True), or choose another output"
            )
        if change or restart:
            self._clear(*_CONTENT[:-1])
        for name in (_BLOCKS, _FIXED):
            (self.folder / name).mkdir(exist_ok=True)
        for left in self.folder.rglob(f"*{TEMPORARY}"):
            left.unlink()
        if not file.is_file():
            write_json(file, manifest, indent=1)
        self.resumed = len(self._indices())

    def _clear(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def started(self) -> bool:
        """Tell whether anything is there that took work to make."""
        return bool(self._indices())

    def disk_errors(self) -> AbstractContextManager[None]:
        """Turn a failed write into a JobError that says that finished blocks are kept."""
        return disk_errors(
            self.folder,
            f"Finished blocks are kept in {self.folder}; once there is room (the output needs its "
            "own size again while it is put together), run the same command again to go on",
        )

    # -- blocks -------------------------------------------------------------------------------

    def block_path(self, index: int) -> Path:
        """Return where a block is, if it is finished."""
        return self.folder / _BLOCKS / f"{index:08d}{self.suffix}"

    def write_block(self, index: int, write: Callable[[BinaryIO], object]) -> None:
        """Write a finished block; it is on the disk when this returns."""
        with self.disk_errors():
            write_file(self.block_path(index), write)

    def drop_block(self, index: int) -> None:
        """Remove a damaged block, which is then to be done again."""
        self.block_path(index).unlink(missing_ok=True)

    def count(self) -> int:
        """Return one more than the index of the last finished block."""
        return max(self._indices(), default=-1) + 1

    def _indices(self) -> list[int]:
        return [int(path.stem) for path in (self.folder / _BLOCKS).glob(f"*{self.suffix}")]

    # -- what is decided once -----------------------------------------------------------------

    def fix(self, name: str, value: str | npt.NDArray[Any]) -> None:
        """Decide something for all blocks and all later runs of this job."""
        path = self.folder / _FIXED / name
        with self.disk_errors():
            if isinstance(value, str):
                write_text(path.with_suffix(".txt"), value)
            else:
                array = value
                write_file(path.with_suffix(".npy"), lambda handle: np.save(handle, array))

    def fixed_text(self, name: str) -> str | None:
        """Return a text that was decided; None: it is not yet."""
        path = self.folder / _FIXED / f"{name}.txt"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def fixed_array(self, name: str) -> npt.NDArray[Any] | None:
        """Return an array that was decided; None: it is not yet.

        Raises:
            JobError: its file is damaged.
        """
        path = self.folder / _FIXED / f"{name}.npy"
        try:
            array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            raise JobError(
                f"{path} is damaged ({error}). To start over use --restart (restart=True), or "
                "choose another output"
            ) from error
        return array

    # -- end ----------------------------------------------------------------------------------

    def report(self) -> dict[str, Any] | None:
        """Return the report of a job whose output is written but whose folder is not yet gone."""
        file = self.folder / _DONE
        try:
            report: dict[str, Any] | None = read_json(file, JobError) if file.is_file() else None
        except JobError:  # damaged: the output is put together once more
            return None
        return report

    def finish(self, report: Mapping[str, Any]) -> None:
        """Mark the output as written, then remove the folder."""
        with self.disk_errors():
            write_json(self.folder / _DONE, report)
        self.remove()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        self._clear(*_CONTENT)
        self.folder.rmdir()
