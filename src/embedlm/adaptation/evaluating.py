"""How good a model is on the held-out queries and on a general suite, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.adaptation.split import HELD_OUT
from embedlm.embedder import Embedder
from embedlm.errors import InputError
from embedlm.evaluation.comparison import Comparison, Difference, compare
from embedlm.evaluation.results import Cache, Result
from embedlm.evaluation.suite import Retrieval, RetrievalFields, RetrievalFiles, Task
from embedlm.evaluation.tasks import Run, data_folder, found_tasks, select

__all__ = ["METRIC", "Examination", "Verdict", "examination", "judged", "scores_of"]

METRIC = "ndcg@10"


@dataclass(frozen=True, slots=True)
class Examination:
    """The tasks on which both models are scored."""

    tasks: Mapping[str, Task]
    """Of the general suite."""
    paths: Mapping[str, Mapping[str, Path]]
    why_none: str
    """Why there is no general suite; "" where there is one."""

    def score(self, model: Embedder, data: Path, cache: Path) -> list[Result]:
        """Return the results of a model, the held-out queries' first; finished ones are kept.

        Args:
            model: one of the two.
            data: holds the held-out set.
            cache: folder of finished results.
        """
        held = {what: data / HELD_OUT / f"{what}.jsonl" for what in ("corpus", "queries", "qrels")}
        task = Retrieval(
            kind="retrieval",
            summary="Queries of documents that were not trained on.",
            files=RetrievalFiles(**{what: path.name for what, path in held.items()}),
            fields=RetrievalFields(title=None),
        )
        tasks = {HELD_OUT: task, **self.tasks}
        run = Run(model, tasks, {HELD_OUT: held, **self.paths}, cache=Cache(cache))
        return list(run.results())


def examination(suite: str | Path | None, data: str | Path | None) -> Examination:
    """Return the general suite's tasks whose files are there.

    Args:
        suite: its name or file; None: quick, where there is a data folder.
        data: the folder that holds the data sets; None takes $EMBEDLM_DATA.

    Raises:
        InputError: an unknown suite, or (where it was named) one without data.
    """
    tasks = select(suite=suite or "quick")
    try:
        paths, missing = found_tasks(tasks, data_folder(data), skip_missing=True)
    except InputError as error:
        if suite is not None or data is not None:
            raise
        return Examination({}, {}, str(error))
    if HELD_OUT in tasks:
        raise InputError(f"the suite {str(suite)!r} has a task {HELD_OUT!r}; rename it")
    return Examination({name: tasks[name] for name in tasks if name not in missing}, paths, "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which model is kept, and why."""

    kept: str
    """base or tuned."""
    why: str
    held_out: Difference | None
    """None: the tuned model was not evaluated."""
    general: Comparison | None


def judged(base: Sequence[Result], tuned: Sequence[Result] | None) -> Verdict:
    """Keep the tuned model if it is better for sure: the whole interval of the gain is above 0.

    Args:
        base: results of the untouched base, the held-out queries' first.
        tuned: those of the tuned model; None: on the dev queries no step was better than the start.
    """
    if tuned is None:
        why = "no step was better than the untouched base on the queries it is chosen by"
        return Verdict("base", why, None, None)
    held = compare(base[:1], tuned[:1], ("base", "tuned")).tasks[0]
    general = compare(base[1:], tuned[1:], ("base", "tuned")) if len(base) > 1 else None
    low, high = held.interval
    told = f"{METRIC} {held.difference:+.4f} [{low:+.4f}, {high:+.4f}] on {held.n} queries"
    if low > 0:
        return Verdict("tuned", f"the tuned model is better: {told}", held, general)
    lost = "the tuned model is worse" if high < 0 else "no gain is sure"
    return Verdict("base", f"{lost}: {told}", held, general)


def scores_of(result: Result) -> dict[str, Any]:
    """Return the metrics of the held-out queries, without those of single heads."""
    return {
        name: value
        for name, value in result.scores().items()
        if name == "interval" or "_" not in name
    }
