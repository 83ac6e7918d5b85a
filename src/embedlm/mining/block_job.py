"""A resumable job that keeps what it has done in blocks, and puts its files together at the end.

Mining, scoring and synthesis are such jobs. A killed one goes on with the first block that is
missing, and gives the very bytes of one that was never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from embedlm.data import record_lines
from embedlm.data.training_record import read_training_record
from embedlm.errors import JobError
from embedlm.jobs import Job, Reject, write_file
from embedlm.jobs.json_files import json_text, write_json
from embedlm.jobs.rejects import write_rejects

__all__ = ["BlockJob", "read_block", "write_block"]


def write_block(job: Job, number: int, head: Mapping[str, Any], lines: Iterable[Any]) -> None:
    """Write a block: its head, then what it holds, each a line of JSON."""
    content = "".join(f"{json_text(value)}\n" for value in (head, *lines)).encode("utf-8")

    def write(handle: BinaryIO) -> None:
        handle.write(content)

    job.write_block(number, write)


def read_block(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a block's head and what it holds.

    Raises:
        JobError: the file is damaged.
    """
    try:
        head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise JobError(
            f"{path} is damaged ({error}). To start over use --restart (restart=True), or choose "
            "another output"
        ) from error
    return head, lines


@dataclass(slots=True, kw_only=True)
class BlockJob:
    """Where a job writes, and what it was given beside its input."""

    out: Path
    form: str
    manifest: Mapping[str, Any]
    size: int
    """Records or items of a block."""
    restart: bool
    rejects: Path | None
    """Where what was left out goes; None: beside the output."""
    bad: Sequence[Reject]
    """What of the input could not be read."""
    show_progress: bool | None

    def to_end(self, work: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
        """Return the report of the job; `work` does what no earlier run has finished."""
        with Job.open(self.out, self.manifest, restart=self.restart, suffix=".jsonl") as job:
            found = job.report()
            if found is None or not self.out.exists():
                found = work(job)
                with job.disk_errors():
                    self._put_together(job, found)
            job.finish(found)
        return found

    def made(self, job: Job) -> Iterator[dict[str, Any]]:
        """Yield the records that were made, as JSON has them."""
        raise NotImplementedError

    def left_out(self, job: Job) -> Iterator[Reject]:
        """Yield what was left out."""
        raise NotImplementedError

    def _put_together(self, job: Job, report: dict[str, Any]) -> None:
        left_out = [
            reject.to_json().encode("utf-8") + b"\n" for reject in (*self.bad, *self.left_out(job))
        ]
        aside = self.rejects or self.out.with_name(f"{self.out.name}.rejects.jsonl")
        if left_out or self.rejects is not None:
            write_rejects(aside, left_out)
        else:
            aside.unlink(missing_ok=True)
        report["rejects"] = str(aside) if left_out or self.rejects is not None else None
        write_json(self.out.with_name(f"{self.out.name}.report.json"), report, indent=1)
        write_file(self.out, lambda handle: handle.writelines(self._lines(job)))

    def _lines(self, job: Job) -> Iterator[bytes]:
        for record in self.made(job):
            yield from record_lines(read_training_record(record, "a new record"), self.form)
