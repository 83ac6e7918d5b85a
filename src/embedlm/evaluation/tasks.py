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
from embedlm.evaluation.probes import Searched, Speed
from embedlm.evaluation.results import Cache, Result, result_of, task_key
from embedlm.evaluation.subject import Subject
from embedlm.evaluation.suite import Retrieval, Suite, Task, known_tasks, named_tasks, packaged
from embedlm.jobs.interrupts import keeping
from embedlm.jobs.names import check_name
from embedlm.loader import load
from embedlm.schema.arguments import check_arguments, check_names

__all__ = [
    "OPTIONS",
    "Run",
    "check_for_mteb",
    "check_words",
    "data_folder",
    "evaluate",
    "found_tasks",
    "of_mteb",
    "select",
]

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


def of_mteb(tasks: Sequence[str] | None) -> bool:
    """Tell whether tasks are mteb's: mteb/NAME, or a name that begins with a capital.

    Raises:
        InputError: some are and some are not.
    """
    own = [name for name in tasks or () if not (name.startswith("mteb/") or name[:1].isupper())]
    if own and len(own) < len(tasks or ()):
        raise InputError(
            f"{', '.join(own)} and tasks of mteb cannot run in one call, as their data lie "
            "differently; take two calls"
        )
    return bool(tasks) and not own


def check_words(tasks: Mapping[str, Task], words: int | None) -> None:
    """Refuse a number of words below 1, or for tasks without documents that it would shorten.

    Raises:
        InputError: with what is allowed.
    """
    if words is None:
        return
    if words < 1:
        raise InputError(f"words is {words}; give a number above 0, or None for whole documents")
    if not any(map(_has_corpus, tasks.values())):
        corpora = [name for name, task in known_tasks().items() if _has_corpus(task)]
        raise InputError(
            f"words (--words) shortens the documents of a corpus, and {', '.join(tasks)} have "
            f"none; leave it out, or take one of {', '.join(sorted(corpora))}"
        )


def _has_corpus(task: Task) -> bool:
    """Tell whether a task has documents that `words` shortens."""
    return isinstance(task, Retrieval | Searched)


def data_folder(
    data: str | Path | None = None, tasks: Mapping[str, Task] | None = None
) -> Path | None:
    """Return the folder of the data sets: the one given, or else $EMBEDLM_DATA.

    None where neither is given and no task needs it, since its files come with the package.

    Args:
        data: the folder.
        tasks: those that will be run.

    Raises:
        InputError: neither is given though a task needs it, or it is not a folder.
    """
    folder = data if data is not None else os.environ.get("EMBEDLM_DATA") or None
    if folder is None:
        files = [path for task in (tasks or {}).values() for path in task.paths().values()]
        if files and all(packaged(path) for path in files):
            return None
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
    tasks: Mapping[str, Task], folder: Path | None, *, skip_missing: bool = False
) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Return the files of each task, and the first missing file of each task that is skipped.

    Raises:
        InputError: a file is not there and tasks may not be skipped; or none can run.
    """
    there: dict[str, dict[str, Path]] = {}
    missing: dict[str, str] = {}
    for name, task in tasks.items():
        paths = {
            what: packaged(path) or existing((folder or Path()) / path)
            for what, path in task.paths().items()
        }
        lost = [path for what, path in task.paths().items() if paths[what] is None]
        if lost:
            missing[name] = lost[0]
        else:
            there[name] = {what: path for what, path in paths.items() if path is not None}
    if missing and not (skip_missing and there):
        told = "; ".join(
            f"{name} needs {(folder or Path()) / path}" for name, path in missing.items()
        )
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
        options = {**self.options, "words": self.words if _has_corpus(task) else None}
        key, hashes = task_key(self.revision, name, task, paths, options)
        # A speed is of this machine at this time.
        cache = None if isinstance(task, Speed) else self.cache
        known = cache.get(key) if cache is not None and not self.restart else None
        if known is None:
            start = time.perf_counter()
            with _of(name):
                scored = score_task(subject, task, paths)
                known = result_of(name, task, scored, time.perf_counter() - start)
            if cache is not None:
                cache.put(key, known)
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
        model: an embedder, or what `embedlm.load` takes; for mteb's tasks also a re-ranker.
        tasks: names of tasks; None: those of the suite, or stsb_dev. Names that begin with a
            capital (or mteb/) are tasks of mteb; see `evaluation.mteb_tasks`.
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
    if of_mteb(tasks):
        given: dict[str, Any] = {
            "suite": suite,
            "words": words,
            "skip_missing": skip_missing,
            "encode": encode,
        }
        given |= {"data": data, "cache": cache, "restart": restart, "on_result": on_result}
        return _by_mteb(tasks or (), given, model, options)
    chosen = select(tasks, suite)
    check_words(chosen, words)
    paths, _ = found_tasks(chosen, data_folder(data, chosen), skip_missing=skip_missing)
    embedder = model if isinstance(model, Embedder) else load(model, **options)
    kept = None if cache is None else Cache(Path(cache))
    run = Run(embedder, chosen, paths, words, dict(encode or {}), kept, restart)
    results = []
    for result in run.results():
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


def _by_mteb(
    tasks: Sequence[str], given: Mapping[str, Any], model: Any, loading: Mapping[str, Any]
) -> list[Result]:
    """Score a model on tasks of mteb; `given` are the arguments of `evaluate`."""
    from embedlm.evaluation.mteb_models import opened
    from embedlm.evaluation.mteb_tasks import mteb_results

    check_for_mteb(given)
    encode = dict(given["encode"] or {})
    check_names("evaluate", encode, OPTIONS)
    check_arguments("encode", **encode)
    return mteb_results(
        opened(model, **loading),
        tasks,
        data=None if given["data"] is None else data_folder(given["data"]),
        cache=None if given["cache"] is None else Path(given["cache"]),
        restart=given["restart"],
        on_result=given["on_result"],
        **encode,
    )


def check_for_mteb(given: Mapping[str, Any]) -> None:
    """Refuse arguments that have no meaning for tasks of mteb.

    Raises:
        InputError: suite, words or skip_missing is given.
    """
    for name in ("suite", "words", "skip_missing"):
        if given[name]:
            raise InputError(
                f"{name} (--{name.replace('_', '-')}) is of our own tasks and has no meaning for "
                "tasks of mteb; leave it out"
            )
