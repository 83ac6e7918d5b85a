"""A resumable job over records, in blocks: mining and scoring are such jobs."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedlm.data import TrainingRecord
from embedlm.errors import InputError, JobError
from embedlm.jobs import Job, Reject, progress
from embedlm.jobs.atomic import TEMPORARY
from embedlm.jobs.json_files import json_text
from embedlm.jobs.lock import check_own, locked
from embedlm.jobs.names import check_apart
from embedlm.mining.block_job import BlockJob, read_block, write_block
from embedlm.mining.corpus import RecordFile

__all__ = ["Finding", "RecordJob", "Summary", "rounded", "work_folder"]

EXAMPLES = 5
"""Examples of each rule that a report shows."""
_LOCK = "lock"


@dataclass(slots=True)
class Summary:
    """Numbers of a block or a job, and examples of what was left out."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def example(self, name: str, value: dict[str, Any]) -> None:
        """Keep an example, unless there are enough of its name."""
        if len(found := self.examples.setdefault(name, [])) < EXAMPLES:
            found.append(value)

    def add(self, counts: Mapping[str, int], examples: Mapping[str, list[dict[str, Any]]]) -> None:
        """Add the numbers and examples of a block."""
        self.counts.update(counts)
        for name, values in examples.items():
            for value in values:
                self.example(name, value)


def rounded(score: float) -> float:
    """Return a float32 as the shortest number that gives it back."""
    return float(f"{score:.9g}")


@dataclass(frozen=True, slots=True)
class Finding:
    """A record as it is written, or the reason why it is not."""

    record: TrainingRecord
    reason: str | None = None


Work = Callable[[list[TrainingRecord], Summary], list[Finding]]


@dataclass(slots=True, kw_only=True)
class RecordJob(BlockJob):
    """A job that works on records, block by block."""

    records: RecordFile
    label: str

    def run(
        self, prepare: Callable[[], Work], report: Callable[[Summary], dict[str, Any]]
    ) -> dict[str, Any]:
        """Work on every block that no earlier run has finished; return the report.

        Args:
            prepare: returns the function that turns the records of a block into findings; it is
                called only where there is work left.
            report: makes the report from the numbers of all blocks.
        """

        def work(job: Job) -> dict[str, Any]:
            self._blocks(job, prepare)
            summary = Summary()
            for head, _ in self._finished(job):
                summary.add(head["counts"], head["examples"])
            return report(summary)

        return self.to_end(work)

    def _blocks(self, job: Job, prepare: Callable[[], Work]) -> None:
        starts = range(0, len(self.records), self.size)
        left = [i for i in range(len(starts)) if not job.block_path(i).is_file()]
        if not left:
            return
        with job.disk_errors():
            work = prepare()
        with progress(self.show_progress, len(self.records), unit="query", label=self.label) as bar:
            bar(len(self.records) - sum(len(self._block(i)) for i in left))
            for i in left:
                summary = Summary()
                block = [self.records.record(place) for place in self._block(i)]
                findings = work(block, summary)
                head = {"counts": summary.counts, "examples": summary.examples}
                lines = [{"record": one.record.to_json(), "reason": one.reason} for one in findings]
                write_block(job, i, head, lines)
                bar(len(block))

    def _block(self, index: int) -> range:
        start = index * self.size
        return range(start, min(start + self.size, len(self.records)))

    def _finished(self, job: Job) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Yield the head and the findings of each block."""
        for i in range(len(range(0, len(self.records), self.size))):
            yield read_block(job.block_path(i))

    def _findings(self, job: Job) -> Iterator[dict[str, Any]]:
        for _, findings in self._finished(job):
            yield from findings

    def made(self, job: Job) -> Iterator[dict[str, Any]]:
        """Yield the records that are not left out."""
        for found in self._findings(job):
            if found["reason"] is None:
                yield found["record"]

    def left_out(self, job: Job) -> Iterator[Reject]:
        """Yield the records that are left out, with the reasons."""
        for number, found in enumerate(self._findings(job), 1):
            if found["reason"] is not None:
                yield Reject("records", number, found["reason"], json_text(found["record"]))


@contextmanager
def work_folder(out: Path, given: str | Path | None, inputs: Iterable[Any] = ()) -> Iterator[Path]:
    """Yield the folder for passages, vectors and records; one that was not named is removed.

    Where a job stops in its work, what is there is kept for the next run.

    Args:
        out: the output.
        given: the folder; None: one beside the output.
        inputs: files and folders that are read; what is no path is passed over.

    Raises:
        InputError: the folder holds an input, or what no run has written: a run could overwrite it.
        JobError: another process works there, or the folder cannot be made.
    """
    folder = out.with_name(f"{out.name}.work") if given is None else Path(given)
    check_apart(folder, inputs, "work folder")
    check_own(folder, folder / _LOCK, "work folder")
    gone = folder.with_name(f"{folder.name}{TEMPORARY}")
    try:
        if given is None:
            shutil.rmtree(gone, ignore_errors=True)  # what a kill left of an earlier run
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(
            f"the work folder {folder} cannot be made: {error.strerror}; name another (work)"
        ) from error
    with locked(folder / _LOCK):
        remove = given is None
        try:
            yield folder
        except BaseException as error:
            made = {path.name for path in folder.iterdir()} - {_LOCK}
            # Nothing that took work is there.
            remove = remove and (isinstance(error, InputError) or not made)
            raise
        finally:
            if remove:  # at once: a later run must not find half of an index
                os.replace(folder, gone)
                shutil.rmtree(gone, ignore_errors=True)
