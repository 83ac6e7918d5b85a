"""The steps of a run, each of which is done once: what an earlier run has finished is read.

OUT/.lock              held by the process at work
OUT/data/              corpus, training records and the held-out set; kept
OUT/work/              manifest, finished steps, vectors, checkpoints; removed at the end
OUT/model/             the model that is kept
OUT/report.md, OUT/report.json     written last
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedlm.errors import InputError, JobError
from embedlm.jobs.atomic import TEMPORARY, disk_errors
from embedlm.jobs.interrupts import keeping
from embedlm.jobs.json_files import read_json, write_json
from embedlm.jobs.lock import check_own, locked
from embedlm.jobs.manifest import difference, json_values
from embedlm.jobs.names import check_apart, check_name, make_folder
from embedlm.training.trackers import EventHandler

__all__ = ["REPORT", "Steps", "check_output", "opened"]

REPORT = "report.json"
_LOCK, _MANIFEST = ".lock", "manifest.json"


class Steps:
    """The output folder of a run; made by `opened`."""

    def __init__(self, out: Path, manifest: Mapping[str, Any], on_event: EventHandler) -> None:
        self.out, self.data, self.work = out, out / "data", out / "work"
        self.manifest = json_values(manifest)
        self.on_event = on_event

    def report(self) -> dict[str, Any] | None:
        """Return the report of a finished run; None: it is not finished."""
        file = self.out / REPORT
        found: dict[str, Any] | None = read_json(file, JobError) if file.is_file() else None
        return found

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a step, or read what it gave an earlier run."""
        file = self.work / f"{name}.json"
        known = file.is_file()
        self.on_event("begin", {"step": name, "finished": known})
        if not known:
            write_json(file, work())
        found: dict[str, Any] = read_json(file, JobError)
        self.on_event("end", {"step": name, "finished": known, **found})
        return found

    def begin(self, *, restart: bool) -> None:
        """Check that what is there belongs to this run; make the folders.

        Raises:
            JobError: an earlier run had other input or options.
        """
        finished, file = self.report(), self.work / _MANIFEST
        before = finished["run"] if finished is not None else None
        if before is None and file.is_file():
            before = read_json(file, JobError)
        change = "" if before is None else difference(before, self.manifest)
        if change and not restart:
            raise JobError(
                f"{self.out} holds a run that differs from this one: {change}. To go on, give it "
                "what it was begun with. To start over use --restart (restart=True), or choose "
                "another output"
            )
        if restart:
            for name in (REPORT, "report.md"):
                (self.out / name).unlink(missing_ok=True)
            for folder in (self.out / "model", self.data, self.work):
                shutil.rmtree(folder, ignore_errors=True)
        for left in self.out.glob(f".model.*{TEMPORARY}"):  # a kill left it
            shutil.rmtree(left, ignore_errors=True)
        if self.report() is None:
            for folder in (self.data, self.work):
                folder.mkdir(exist_ok=True)
            write_json(file, self.manifest, indent=1)
        else:
            self.end()

    def end(self) -> None:
        """Remove the work folder, at once: a later run must not find half of it."""
        gone = self.out / f"work{TEMPORARY}"
        shutil.rmtree(gone, ignore_errors=True)
        if self.work.is_dir():
            os.replace(self.work, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def started(self) -> bool:
        """Tell whether a step is finished."""
        return any(path.name != _MANIFEST for path in self.work.glob("*.json"))


@contextmanager
def opened(out: Path, manifest: Mapping[str, Any], on_event: EventHandler) -> Iterator[Steps]:
    """Hold the output folder of a run.

    Raises:
        InputError: the folder holds what no run has written.
        JobError: another process works there.
    """
    check_output(out)
    make_folder(out, "output folder")
    steps = Steps(out, manifest, on_event)
    kept = f"What is finished is kept in {out}; make room and give the same command again"
    with disk_errors(out, kept), locked(out / _LOCK), keeping(steps.started):
        yield steps


def check_output(out: Path, inputs: Iterable[Any] = ()) -> None:
    """Refuse an output folder that holds what no run has written, or that is among the inputs.

    Args:
        out: the folder.
        inputs: files and folders that are read: what a run writes must not become documents.
    """
    check_name(out, "output")
    check_apart(out, inputs)
    if out.is_file():
        raise InputError(f"the output {str(out)!r} is a file; give a folder")
    check_own(out, out / _LOCK, "output folder")
