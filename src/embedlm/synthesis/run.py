"""The job: stage after stage, in blocks of items that are kept, then the records' file.

A block holds what became of some items of the stage before. A killed job goes on with the first
block that is missing and gives the very bytes of one that was never stopped.

Light stages (checks, the making of records) run along with the stage before them: while a language
model answers, what it has answered is looked at and written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from embedlm.errors import InputError
from embedlm.jobs import Job, Reject, progress
from embedlm.jobs.json_files import json_text
from embedlm.jobs.progress import Progress
from embedlm.jobs.rejects import check_counts
from embedlm.mining.block_job import BlockJob, read_block, write_block
from embedlm.mining.lines import Lines
from embedlm.synthesis.asking import Outcome
from embedlm.synthesis.items import Item
from embedlm.synthesis.stages import Stage

__all__ = ["SynthesisJob"]

_STAGE = 1_000_000
"""Blocks that a stage may have."""
_EXAMPLES = 3
"""Examples of each reason that a report shows."""
_Block = tuple[dict[str, Any], list[dict[str, Any]]]
_USAGE = ("answers", "repairs", "cut_off", "prompt_tokens", "new_tokens")


class _Items:
    """The items after a stage, read from its blocks as often as is needed."""

    def __init__(self, job: Job, stage: int, first: int = 0) -> None:
        self.job, self.stage, self.first = job, stage, first

    def __iter__(self) -> Iterator[Item]:
        for path in self.paths():
            for line in read_block(path)[1]:
                yield from line["items"]

    def paths(self) -> Iterator[Path]:
        """Yield the blocks that are finished."""
        number = self.stage * _STAGE + self.first
        while (path := self.job.block_path(number)).is_file():
            yield path
            number += 1

    def blocks(self) -> int:
        """Return how many blocks are finished."""
        return sum(1 for _ in self.paths())

    def finished(self) -> bool:
        """Tell whether the stage is: its end is marked by an empty block."""
        last = max(self.paths(), default=None)
        return last is not None and not read_block(last)[1]


@dataclass(slots=True, kw_only=True)
class SynthesisJob(BlockJob):
    """A job that takes items through stages, block by block."""

    first: Lines
    stages: list[Stage]
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report says of models and pipeline."""

    def run(self) -> dict[str, Any]:
        """Run every stage that no earlier run has finished; return the report."""

        def work(job: Job) -> dict[str, Any]:
            before: Any = self.first
            for run in self._runs():
                before = self._run(job, run, before)
            return self._report(job)

        return self.to_end(work)

    def _runs(self) -> list[list[int]]:
        """Return the numbers of the stages, those together that run at the same time."""
        runs: list[list[int]] = []
        for number, stage in enumerate(self.stages):
            if stage.light and runs:
                runs[-1].append(number)
            else:
                runs.append([number])
        return runs

    def _run(self, job: Job, run: list[int], before: Any) -> _Items:
        """Run some stages at the same time, unless they are finished."""
        last = _Items(job, run[-1])
        if last.finished():
            return last
        total = len(self.first) if run[0] == 0 else None
        label = self.stages[run[0]].name
        with (
            progress(self.show_progress, total, unit="item", label=label) as bar,
            ExitStack() as to,
        ):
            items: Any = before
            for number in run:
                told = bar if number == run[0] else None
                items = to.enter_context(closing(self._after(job, number, items, told)))
            for _ in items:
                pass
        return last

    def _after(
        self, job: Job, number: int, before: Any, bar: Progress | None
    ) -> Generator[Item, None, None]:
        """Yield the items after a stage, each once its block is kept."""
        done, stage = _Items(job, number), self.stages[number]
        yield from done
        if done.finished():
            return
        kept = done.blocks()
        skipped = kept * self.size if stage.alone else 0
        if bar is not None:
            bar(skipped)
        outcomes = stage.run(islice(before, skipped, None) if skipped else before)
        with closing(outcomes) if isinstance(outcomes, Generator) else nullcontext():
            for at, block in self._blocks(outcomes, kept if stage.alone else 0):
                if at >= kept:
                    write_block(job, number * _STAGE + at, *block)
                    yield from _Items(job, number, at)
                if bar is not None:
                    bar(len(block[1]))

    def _blocks(self, outcomes: Iterator[Outcome], at: int) -> Iterator[tuple[int, _Block]]:
        """Yield each block with its number; the last one has no items."""
        last = False
        while not last:
            some = list(islice(outcomes, self.size))
            counts: Counter[str] = Counter()
            for outcome in some:
                counts.update(outcome.counts)
            rows = [{"items": one.items, "aside": one.aside} for one in some]
            yield at, ({"counts": counts}, rows)
            last, at = not some, at + 1

    # -- the end ----------------------------------------------------------------------------------

    def made(self, job: Job) -> Iterator[Item]:
        """Yield the items after the last stage."""
        yield from _Items(job, len(self.stages) - 1)

    def left_out(self, job: Job) -> Iterator[Reject]:
        """Yield what each stage has set aside."""
        for number, stage in enumerate(self.stages):
            lines = (line for path in _Items(job, number).paths() for line in read_block(path)[1])
            for place, line in enumerate(lines, 1):
                for reason, item in line["aside"]:
                    yield Reject(stage.name, place, reason, json_text(item))

    def _report(self, job: Job) -> dict[str, Any]:
        usage: Counter[str] = Counter(dict.fromkeys(_USAGE, 0))
        steps: list[dict[str, Any]] = []
        for number, stage in enumerate(self.stages):
            read = kept = 0
            reasons: dict[str, Any] = {}
            for path in _Items(job, number).paths():
                head, lines = read_block(path)
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
