"""The job: stage after stage, in blocks of items that are kept, then the records' file.

A block holds what became of some items of the stage before. A killed job goes on with the first
block that is missing and gives the very bytes of one that was never stopped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from embedlm.data import record_lines
from embedlm.data.training_record import read_training_record
from embedlm.errors import InputError, JobError
from embedlm.jobs import Job, Reject, progress, write_file
from embedlm.jobs.json_files import json_text, write_json
from embedlm.jobs.rejects import check_counts, write_rejects
from embedlm.mining.lines import Lines
from embedlm.synthesis.asking import Outcome
from embedlm.synthesis.items import Item
from embedlm.synthesis.stages import Stage

__all__ = ["SynthesisJob"]

_STAGE = 1_000_000
"""Blocks that a stage may have."""
_EXAMPLES = 3
"""Examples of each reason that a report shows."""
_USAGE = ("answers", "repairs", "cut_off", "prompt_tokens", "new_tokens")


class _Items:
    """The items after a stage, read from its blocks as often as is needed."""

    def __init__(self, job: Job, stage: int) -> None:
        self.job, self.stage = job, stage

    def __iter__(self) -> Iterator[Item]:
        for path in _paths(self.job, self.stage):
            for line in _lines(path)[1]:
                yield from line["items"]


def _paths(job: Job, stage: int) -> Iterator[Path]:
    number = stage * _STAGE
    while (path := job.block_path(number)).is_file():
        yield path
        number += 1


def _lines(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a block's head and lines."""
    try:
        head, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise JobError(
            f"{path} is damaged ({error}). To start over use --restart (restart=True), or choose "
            "another output"
        ) from error
    return head, lines


@dataclass(slots=True)
class SynthesisJob:
    """What a job reads, does and writes."""

    first: Lines
    stages: list[Stage]
    out: Path
    form: str
    manifest: Mapping[str, Any]
    size: int
    """Items of a block."""
    restart: bool
    rejects: Path | None
    """Where what was set aside goes; None: beside the output."""
    bad: list[Reject]
    """Records of the input that could not be read."""
    show_progress: bool | None
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report says of models and pipeline."""

    def run(self) -> dict[str, Any]:
        """Run every stage that no earlier run has finished; return the report."""
        with Job.open(self.out, self.manifest, restart=self.restart, suffix=".jsonl") as job:
            found = job.report()
            if found is None or not self.out.exists():
                before: Any = self.first
                for number, stage in enumerate(self.stages):
                    before = self._run(job, number, stage, before)
                found = self._put_together(job)
            job.finish(found)
        return found

    def _run(self, job: Job, number: int, stage: Stage, before: Any) -> _Items:
        """Run one stage, unless it is finished; its end is marked by an empty block."""
        done = list(_paths(job, number))
        if not done or _lines(done[-1])[1]:
            total = len(self.first) if number == 0 else None
            kept = len(done)
            skipped = kept * self.size if stage.alone else 0
            with progress(self.show_progress, total, unit="item", label=stage.name) as bar:
                bar(skipped)
                outcomes = stage.run(islice(before, skipped, None) if skipped else before)
                for at, block in self._blocks(outcomes, kept if stage.alone else 0):
                    if at >= kept:
                        content = b"".join(block)
                        job.write_block(number * _STAGE + at, _writer(content))
                    bar(len(block) - 1)
        return _Items(job, number)

    def _blocks(self, outcomes: Iterator[Outcome], at: int) -> Iterator[tuple[int, list[bytes]]]:
        """Yield each block with its number; the last one has no items."""
        last = False
        while not last:
            some = list(islice(outcomes, self.size))
            counts: Counter[str] = Counter()
            for outcome in some:
                counts.update(outcome.counts)
            rows = [{"items": one.items, "aside": one.aside} for one in some]
            yield at, [_line({"counts": counts}), *map(_line, rows)]
            last, at = not some, at + 1

    # -- the end ----------------------------------------------------------------------------------

    def _put_together(self, job: Job) -> dict[str, Any]:
        report = self._report(job)
        last = len(self.stages) - 1
        rejects = [reject.to_json().encode("utf-8") + b"\n" for reject in self.bad]
        aside = self.rejects or self.out.with_name(f"{self.out.name}.rejects.jsonl")
        with job.disk_errors():
            left_out = [*rejects, *self._set_aside(job)]
            if left_out or self.rejects is not None:
                write_rejects(aside, left_out)
            else:
                aside.unlink(missing_ok=True)
            report["rejects"] = str(aside) if left_out or self.rejects is not None else None
            write_json(self.out.with_name(f"{self.out.name}.report.json"), report, indent=1)
            write_file(self.out, lambda handle: handle.writelines(self._records(job, last)))
        return report

    def _records(self, job: Job, last: int) -> Iterator[bytes]:
        for item in _Items(job, last):
            yield from record_lines(read_training_record(item, "a new record"), self.form)

    def _set_aside(self, job: Job) -> Iterator[bytes]:
        for number, stage in enumerate(self.stages):
            place = 0
            for path in _paths(job, number):
                for line in _lines(path)[1]:
                    place += 1
                    for reason, item in line["aside"]:
                        reject = Reject(stage.name, place, reason, json_text(item))
                        yield reject.to_json().encode("utf-8") + b"\n"

    def _report(self, job: Job) -> dict[str, Any]:
        usage: Counter[str] = Counter(dict.fromkeys(_USAGE, 0))
        steps: list[dict[str, Any]] = []
        for number, stage in enumerate(self.stages):
            read = kept = 0
            reasons: dict[str, Any] = {}
            for path in _paths(job, number):
                head, lines = _lines(path)
                usage.update(head["counts"])
                read, kept = read + len(lines), kept + sum(len(line["items"]) for line in lines)
                for line in lines:
                    for reason, item in line["aside"]:
                        _note(reasons, reason, item)
            steps.append({"step": stage.name, "read": read, "kept": kept, "set_aside": reasons})
        before = [len(self.first), *(step["kept"] for step in steps)]
        for step, wanted in zip(steps, before, strict=False):
            check_counts(int(wanted), int(step["read"]), 0)
        if not steps[-1]["kept"] and not self.bad and not any(s["set_aside"] for s in steps):
            raise InputError("nothing was made and nothing set aside; the input holds no item")
        return {
            "output": self.out.name,
            "items": len(self.first),
            "written": steps[-1]["kept"],
            "unreadable": len(self.bad),
            "steps": steps,
            "usage": dict(usage),
            **self.facts,
        }


def _note(reasons: dict[str, Any], reason: str, item: Item) -> None:
    """Count a reason; numbers and names in it are details of one item."""
    kind = _kind(reason)
    entry = reasons.setdefault(kind, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < _EXAMPLES:
        entry["examples"].append({"id": item.get("id"), "reason": reason})


def _kind(reason: str) -> str:
    """Return what reasons of one kind have in common."""
    _, _, told = reason.partition(": ")
    parts = told.split(": ")
    short = ": ".join(parts[:2]) if parts[0] not in ("unreadable", "refused") else parts[0]
    return "".join("N" if c.isdigit() else c for c in short.partition(", ")[0])


def _line(value: Any) -> bytes:
    return json_text(value).encode("utf-8") + b"\n"


def _writer(content: bytes) -> Any:
    def write(handle: BinaryIO) -> None:
        handle.write(content)

    return write
