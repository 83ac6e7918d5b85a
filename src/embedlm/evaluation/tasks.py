"""Scores a model on tasks: what is missing is told first, what is finished is not done again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedlm.data import existing
from embedlm.embedder import Embedder
from embedlm.encode.identity import revision
from embedlm.errors import InputError
from embedlm.evaluation.kinds import score_task
from embedlm.evaluation.results import Cache, Result, result_of, task_key
from embedlm.evaluation.subject import Subject
from embedlm.evaluation.suite import Suite, Task, known_tasks, named_tasks
from embedlm.jobs.interrupts import keeping
from embedlm.jobs.names import check_name
from embedlm.loader import load
from embedlm.schema.arguments import check_arguments, check_names

__all__ = ["OPTIONS", "Run", "check_words", "data_folder", "evaluate", "found_tasks", "select"]

OPTIONS = ("dim", "precision", "normalize", "max_length", "batch_tokens", "adapter")
"""The options of `Embedder.encode` under which a model may be scored."""


def select(tasks: Sequence[str] | None = None, suite: str | Path | None = None) -> dict[str, Task]:
    """Return the tasks of a suite, named ones of it, or named ones of any suite.

    Args:
        tasks: names; None: all of the suite.
        suite: its name or file; None: the names are of the package's suites.

    Raises:
        InputError: an unknown suite or task, or neither given.
    """
    if suite is None:
        return named_tasks(("stsb_dev",) if tasks is None else tasks)
    found = Suite.load(suite)
    if tasks is None:
        return found
    check_names(f"the suite {str(suite)!r}", tasks, found)
    return {name: found[name] for name in tasks}


def check_words(tasks: Mapping[str, Task], words: int | None) -> None:
    """Refuse a number of words below 1, or for tasks without documents that it would shorten.

    Raises:
        InputError: with what is allowed.
    """
    if words is None:
        return
    if words < 1:
        raise InputError(f"words is {words}; give a number above 0, or None for whole documents")
    if not any(task.kind == "retrieval" for task in tasks.values()):
        corpora = [name for name, task in known_tasks().items() if task.kind == "retrieval"]
        raise InputError(
            f"words (--words) shortens the documents of a corpus, and {', '.join(tasks)} have "
            f"none; leave it out, or take one of {', '.join(sorted(corpora))}"
        )


def data_folder(data: str | Path | None = None) -> Path:
    """Return the folder of the data sets: the one given, or else $EMBEDLM_DATA.

    Raises:
        InputError: neither is given, or it is not a folder.
    """
    folder = data if data is not None else os.environ.get("EMBEDLM_DATA") or None
    if folder is None:
        raise InputError(
            "no data folder was given; give --data DIR (data=) or set EMBEDLM_DATA to the folder "
            "that holds the data sets"
        )
    check_name(folder, "data folder")
    if not Path(folder).is_dir():
        raise InputError(
            f"the data folder {str(folder)!r} is not there; give --data DIR (data=) or set "
            "EMBEDLM_DATA"
        )
    return Path(folder)


def found_tasks(
    tasks: Mapping[str, Task], folder: Path, *, skip_missing: bool = False
) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Return the files of each task, and the first missing file of each task that is skipped.

    Raises:
        InputError: a file is not there and tasks may not be skipped; or none can run.
    """
    there: dict[str, dict[str, Path]] = {}
    missing: dict[str, str] = {}
    for name, task in tasks.items():
        paths = {what: existing(folder / path) for what, path in task.paths().items()}
        lost = [path for what, path in task.paths().items() if paths[what] is None]
        if lost:
            missing[name] = lost[0]
        else:
            there[name] = {what: path for what, path in paths.items() if path is not None}
    if missing and not (skip_missing and there):
        told = "; ".join(f"{name} needs {folder / path}" for name, path in missing.items())
        advice = (
            "give the folder that holds them (--data)"
            if not there
            else "put the files there, or leave these tasks out with --skip-missing"
        )
        raise InputError(f"{told}: the file is not there (nor with .gz, .xz, .zst); {advice}")
    return there, missing


@dataclass
class Run:
    """A model that is scored on tasks, with what has been found so far."""

    model: Embedder
    tasks: Mapping[str, Task]
    paths: Mapping[str, Mapping[str, Path]]
    words: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: Cache | None = None
    restart: bool = False
    """Score again what the cache holds."""
    subject: Callable[[Embedder, Mapping[str, Any], int | None], Subject] = Subject
    """Makes what is scored of the model, the options and the number of words."""
    data: dict[str, dict[str, str]] = field(default_factory=dict)
    """The hashes of the tasks' files."""
    revision: str = ""

    def results(self) -> Iterator[Result]:
        """Yield the result of each task, in order.

        Raises:
            InputError: an unknown option.
            RecordError: a file that cannot be used, with its line.
        """
        check_names("evaluate", self.options, OPTIONS)
        check_arguments("encode", **self.options)
        generator = getattr(self.model.generator, "name", None)
        self.revision = revision(self.model, generator)
        subject = self.subject(self.model, self.options, self.words)
        with keeping(lambda: self.cache is not None and bool(self.data)):
            for name, paths in self.paths.items():
                yield self._result(subject, name, self.tasks[name], paths)

    def _result(self, subject: Subject, name: str, task: Task, paths: Mapping[str, Path]) -> Result:
        options = {**self.options, "words": self.words if task.kind == "retrieval" else None}
        key, hashes = task_key(self.revision, name, task, paths, options)
        known = self.cache.get(key) if self.cache is not None and not self.restart else None
        if known is None:
            start = time.perf_counter()
            with _of(name):
                scored = score_task(subject, task, paths)
                known = result_of(name, task, scored, time.perf_counter() - start)
            if self.cache is not None:
                self.cache.put(key, known)
        self.data[name] = hashes
        return known

    def described(self) -> dict[str, Any]:
        """Return which model it is, for a result file."""
        return {
            "name": self.model.name,
            "revision": self.revision,
            "recipe": json.loads(self.model.recipe.model_dump_json()),
            "options": {**self.options, "words": self.words},
        }


@contextmanager
def _of(task: str) -> Iterator[None]:
    """Add the task's name to an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the task {task}")
        raise


def evaluate(
    model: Embedder | str | Path | None = None,
    tasks: Sequence[str] | None = None,
    *,
    suite: str | Path | None = None,
    data: str | Path | None = None,
    words: int | None = None,
    cache: str | Path | None = None,
    restart: bool = False,
    skip_missing: bool = False,
    encode: Mapping[str, Any] | None = None,
    on_result: Callable[[Result], object] | None = None,
    **options: Any,
) -> list[Result]:
    """Score a model on tasks.

    Args:
        model: an embedder, or what `embedlm.load` takes.
        tasks: names of tasks; None: those of the suite, or stsb_dev.
        suite: the name of a suite or a .yaml file.
        data: the folder that holds the data sets; None takes $EMBEDLM_DATA.
        words: embed only the first so many words of each document; None embeds all.
        cache: a folder of finished results, which are not computed again; None keeps none.
        restart: compute again what the cache holds.
        skip_missing: leave out tasks whose files are not there.
        encode: options of `encode` for all texts: dim, precision, normalize, max_length, ...
        on_result: called with each result as soon as it is there.
        **options: passed to `embedlm.load`.

    Raises:
        InputError: an unknown suite or task, or files that do not exist.
    """
    chosen = select(tasks, suite)
    check_words(chosen, words)
    paths, _ = found_tasks(chosen, data_folder(data), skip_missing=skip_missing)
    embedder = model if isinstance(model, Embedder) else load(model, **options)
    kept = None if cache is None else Cache(Path(cache))
    run = Run(embedder, chosen, paths, words, dict(encode or {}), kept, restart)
    results = []
    for result in run.results():
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results
