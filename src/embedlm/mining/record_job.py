"""A resumable job over records: blocks of them are worked on, kept, and put together at the end.

Mining and scoring are such jobs. A killed one goes on with the block that was not finished, and
gives the very bytes of one that was never stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from embedlm.data import TrainingRecord, record_lines
from embedlm.data.training_record import read_training_record
from embedlm.errors import InputError, JobError
from embedlm.jobs import Job, Reject, progress, write_file
from embedlm.jobs.atomic import TEMPORARY
from embedlm.jobs.json_files import json_text, write_json
from embedlm.jobs.lock import locked
from embedlm.jobs.rejects import write_rejects
from embedlm.mining.corpus import RecordFile

__all__ = ["Finding", "RecordJob", "Summary", "rounded", "work_folder"]

EXAMPLES = 5
"""Examples of each rule that a report shows."""


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


@dataclass(slots=True)
class RecordJob:
    """What a job reads and where it writes."""

    records: RecordFile
    out: Path
    form: str
    manifest: Mapping[str, Any]
    size: int
    """Records of a block."""
    restart: bool
    rejects: Path | None
    """Where records that were left out go; None: beside the output."""
    bad: Sequence[Reject]
    """Records and passages that could not be read."""
    label: str
    show_progress: bool | None

    def run(
        self, prepare: Callable[[], Work], report: Callable[[Summary], dict[str, Any]]
    ) -> dict[str, Any]:
        """Work on every block that no earlier run has finished; return the report.

        Args:
            prepare: returns the function that turns the records of a block into findings; it is
                called only where there is work left.
            report: makes the report from the numbers of all blocks.
        """
        with Job.open(self.out, self.manifest, restart=self.restart, suffix=".jsonl") as job:
            found = job.report()
            if found is None or not self.out.exists():
                self._blocks(job, prepare)
                found = self._put_together(job, report)
            job.finish(found)
        return found

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
                lines = [json_text({"counts": summary.counts, "examples": summary.examples})]
                lines += [
                    json_text({"record": one.record.to_json(), "reason": one.reason})
                    for one in findings
                ]
                content = "".join(f"{line}\n" for line in lines).encode("utf-8")
                job.write_block(i, partial(_write, content=content))
                bar(len(block))

    def _block(self, index: int) -> range:
        start = index * self.size
        return range(start, min(start + self.size, len(self.records)))

    def _put_together(
        self, job: Job, report: Callable[[Summary], dict[str, Any]]
    ) -> dict[str, Any]:
        summary = Summary()
        for lines in self._finished(job):
            head = json.loads(next(lines))
            summary.add(head["counts"], head["examples"])
        made = report(summary)
        with job.disk_errors():
            left_out = [reject.to_json().encode("utf-8") + b"\n" for reject in self.bad]
            left_out += self._left_out(job)
            aside = self.rejects or self.out.with_name(f"{self.out.name}.rejects.jsonl")
            if left_out or self.rejects is not None:
                write_rejects(aside, left_out)
            else:
                aside.unlink(missing_ok=True)
            made["rejects"] = str(aside) if left_out or self.rejects is not None else None
            write_json(self.out.with_name(f"{self.out.name}.report.json"), made, indent=1)
            write_file(self.out, lambda handle: handle.writelines(self._lines(job)))
        return made

    def _finished(self, job: Job) -> Iterator[Iterator[str]]:
        """Yield the lines of each block."""
        for i in range(len(range(0, len(self.records), self.size))):
            with job.block_path(i).open(encoding="utf-8") as handle:
                yield handle

    def _findings(self, job: Job) -> Iterator[tuple[dict[str, Any], str | None]]:
        for lines in self._finished(job):
            next(lines)
            for line in lines:
                value = json.loads(line)
                yield value["record"], value["reason"]

    def _lines(self, job: Job) -> Iterator[bytes]:
        for record, reason in self._findings(job):
            if reason is None:
                yield from record_lines(read_training_record(record, "a mined record"), self.form)

    def _left_out(self, job: Job) -> list[bytes]:
        rejects = (
            Reject("records", number, reason, json_text(record))
            for number, (record, reason) in enumerate(self._findings(job), 1)
            if reason is not None
        )
        return [reject.to_json().encode("utf-8") + b"\n" for reject in rejects]


def _write(handle: BinaryIO, content: bytes) -> None:
    handle.write(content)


@contextmanager
def work_folder(out: Path, given: str | Path | None) -> Iterator[Path]:
    """Yield the folder for passages, vectors and records; one that was not named is removed.

    Where a job stops in its work, what is there is kept for the next run.

    Raises:
        JobError: another process works there, or the folder cannot be made.
    """
    folder = out.with_name(f"{out.name}.work") if given is None else Path(given)
    gone = folder.with_name(f"{folder.name}{TEMPORARY}")
    try:
        if given is None:
            shutil.rmtree(gone, ignore_errors=True)  # what a kill left of an earlier run
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(
            f"the work folder {folder} cannot be made: {error.strerror}; name another (work)"
        ) from error
    with locked(folder / "lock"):
        remove = given is None
        try:
            yield folder
        except BaseException as error:
            remove = remove and isinstance(error, InputError)  # nothing that took work is there
            raise
        finally:
            if remove:  # at once: a later run must not find half of an index
                os.replace(folder, gone)
                shutil.rmtree(gone, ignore_errors=True)
