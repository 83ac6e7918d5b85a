"""Options of the commands that score models on tasks, and how they print a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import Data, flag, path, repeated, whole
from embedlm.cli._values import listed_names
from embedlm.errors import InputError

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.evaluation.results import Cache, Result
    from embedlm.evaluation.suite import Task
    from embedlm.evaluation.tasks import Run

__all__ = ["AS_NAMED", "Scoring", "score_line"]


@Parameter(name="*", group="Tasks")
@dataclass(frozen=True)
class Scoring:
    """Which tasks are run on which files, and what is kept of them."""

    suite: Annotated[
        str | None,
        path(
            "quick, dev, sts, retrieval, rerank, classification, clustering, pair, bitext, code, "
            "bias, robustness, long or efficiency; or a .yaml file with tasks of your own. What "
            "is done without it and --tasks stands below.",
            metavar="SUITE",
        ),
    ] = None
    tasks: Annotated[
        tuple[str, ...],
        repeated(
            "Names of tasks, with commas between; without it all of the suite; a name with a "
            "capital (STS12, or mteb/NAME) is a task of mteb",
            metavar="TASK,...",
        ),
    ] = ()
    data: Data = None
    words: Annotated[
        int | None,
        whole("Embed only the first N words of each document of a corpus; without it all."),
    ] = None
    skip_missing: Annotated[
        bool, flag("Leave out tasks whose files are not there, and say so.")
    ] = False
    restart: Annotated[bool, flag("Score again what an earlier run has finished.")] = False
    cache: Annotated[
        str | None,
        path(
            "Folder of finished tasks, which are not run again; none keeps nothing; without it the "
            "one in EMBEDLM_CACHE.",
            metavar="DIR",
        ),
    ] = None

    def names(self) -> list[str]:
        """Return the names that --tasks gives.

        Raises:
            InputError: it gives none.
        """
        listed = listed_names(self.tasks)
        if self.tasks and not listed:
            raise InputError("no task was given; name one, or leave --tasks out")
        return listed

    def chosen(self) -> dict[str, Task]:
        """Return the tasks.

        Raises:
            InputError: an unknown suite or task.
        """
        from embedlm.evaluation.tasks import check_words, select

        tasks = select(self.names() or None, self.suite)
        check_words(tasks, self.words)
        return tasks

    def found(self) -> tuple[dict[str, Task], dict[str, dict[str, Path]], dict[str, str]]:
        """Return the tasks, their files, and the missing file of each task that is left out.

        Raises:
            InputError: no data folder, or a file that is not there.
        """
        from embedlm.evaluation.tasks import data_folder, found_tasks

        tasks = self.chosen()
        paths, missing = found_tasks(
            tasks, data_folder(self.data, tasks), skip_missing=self.skip_missing
        )
        return tasks, paths, missing

    def run(
        self,
        load: Callable[[], Embedder],
        options: Mapping[str, Any],
        found: tuple[dict[str, Task], dict[str, dict[str, Path]], dict[str, str]],
    ) -> Run:
        """Return a run of the tasks that were found.

        Args:
            load: loads the model; called once the files are known to be there.
            options: of `Embedder.encode`.
            found: what `found` returned.
        """
        from embedlm.evaluation.tasks import Run

        tasks, paths, _ = found
        return Run(load(), tasks, paths, self.words, options, self.kept(), self.restart)

    def kept(self) -> Cache | None:
        """Return where finished tasks are kept; None: nowhere."""
        from embedlm.evaluation.results import Cache

        return None if self.cache == "none" else Cache(Path(self.cache) if self.cache else None)


AS_NAMED = Scoring()


def score_line(result: Result) -> str:
    """Return a task's main metric, interval and number of units as a line."""
    low, high = result.interval
    if math.isnan(low):
        return f"{result.task:<22} {result.metric:<11} {result.score:7.4f}"
    unit = "unit" if result.sample is None else result.sample.unit
    units = "queries" if unit == "query" else f"{unit}s"
    shown = f"{result.score:7.4f}  [{low:.4f}, {high:.4f}]"
    return f"{result.task:<22} {result.metric:<11} {shown}  {result.count:,} {units}"
