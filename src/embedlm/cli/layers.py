"""`embedlm layers`: how good each layer of a model is, from one pass over each text."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import AS_LOADED, Json, Loading, ModelName, path, repeated
from embedlm.cli._scoring import AS_NAMED, Scoring
from embedlm.cli._values import emit, listed_names
from embedlm.cli._vectors import AS_GIVEN, VectorForm
from embedlm.errors import InputError

if TYPE_CHECKING:
    from embedlm.studies.layer_scores import LayerScore

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "layers"
EXAMPLES = r"""Scores every layer as `embedlm evaluate` does, with intervals, and recommends
one for each dev task. Without --tasks: stsb_dev (similarity) and scifact_dev (search).

Examples:
  embedlm layers builtin-base --data data/
  embedlm layers model.gguf --data data/ -o layers.svg
  embedlm layers Qwen/Qwen3-0.6B -r prompteol --pooling recipe --data data/
  embedlm layers model/ --suite mine.yaml --choose pages --data data/"""
TASKS = ("stsb_dev", "scifact_dev")


@Parameter(name="*", group="Layers")
@dataclass(frozen=True)
class Choice:
    """Which layers are read in which ways, and by which task one is recommended."""

    layers: Annotated[
        tuple[str, ...],
        repeated(
            "Layers to score, with commas between: 0 is the embeddings, -1 the last; without it "
            "all",
            metavar="N,...",
            allow_leading_hyphen=True,
        ),
    ] = ()
    pooling: Annotated[
        tuple[str, ...],
        repeated(
            "How each layer is pooled, with commas between: recipe, mean, mean-no-sink, last; "
            "without it by all of these",
            metavar="POOLING,...",
        ),
    ] = ()
    choose: Annotated[
        str | None,
        Parameter(
            metavar="TASK",
            help="The task that a layer is recommended by; without it each whose name ends in "
            "_dev.",
        ),
    ] = None

    def numbers(self) -> list[int] | None:
        """Return the layers that were named; None: all."""
        names = listed_names(self.layers)
        try:
            return [int(name) for name in names] or None
        except ValueError as error:
            raise InputError(
                f"--layers {','.join(names)!r}: write whole numbers: 0,12,-1"
            ) from error

    def deciding(self, tasks: Sequence[str]) -> list[str]:
        """Return the tasks that layers are recommended by."""
        if self.choose is None:
            return [task for task in tasks if task.endswith("_dev")]
        if self.choose not in tasks:
            raise InputError(
                f"--choose {self.choose!r} is none of the tasks; allowed: {', '.join(tasks)}"
            )
        return [self.choose]


AS_ALL = Choice()


def command(
    model: ModelName,
    /,
    *,
    choice: Choice = AS_ALL,
    scoring: Scoring = AS_NAMED,
    loading: Loading = AS_LOADED,
    form: VectorForm = AS_GIVEN,
    output: Annotated[
        str | None, path("Draw the scores into an .svg file.", ["--output", "-o"])
    ] = None,
    json: Json = False,
) -> None:
    """Score each layer of a model on tasks, and recommend one by dev tasks."""
    from embedlm.jobs.atomic import write_text
    from embedlm.jobs.names import check_file
    from embedlm.studies.layer_plot import plot
    from embedlm.studies.layer_scores import readings_of, score_layers

    check_file(output, [".svg"])
    wanted = choice.numbers()
    if not scoring.tasks and scoring.suite is None:
        scoring = dataclasses.replace(scoring, tasks=TASKS)
    tasks, paths, missing = scoring.found()
    by = [task for task in choice.deciding(list(tasks)) if task in paths]
    for task, file in missing.items():
        print(f"{task} is left out: {file} is not there", file=sys.stderr)
    embedder = loading.load(model)
    scores = list(
        score_layers(
            readings_of(embedder, wanted, listed_names(choice.pooling) or None),
            {name: tasks[name] for name in paths},
            paths,
            words=scoring.words,
            options=form.form(),
            cache=scoring.kept(),
            restart=scoring.restart,
        )
    )
    if output is not None:
        drawn = plot(scores, f"Layers of {Path(model).name}")
        write_text(Path(output), drawn)
    if json:
        emit(_as_dict(scores, by, embedder.backbone.layer_count))
    else:
        _print(scores, by)


def _setting(score: LayerScore) -> str:
    """Return the options that take a reading in every command."""
    changes = score.reading.changes.items()
    shown = (f"--set {name}={str(value).lower()}" for name, value in changes)
    return " ".join(shown) or "as the recipe says"


def _as_dict(scores: Sequence[LayerScore], by: Sequence[str], count: int) -> dict[str, Any]:
    """Return what --json prints."""
    from embedlm.studies.layer_scores import best

    tasks: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for score in scores:
        rows = tasks.setdefault(score.task, {}).setdefault(score.reading.pooling, [])
        rows.append({"layer": score.reading.layer, **score.result.scores()})
    top = {task: best(scores, task) for task in by}
    recommended = {
        task: {
            "layer": score.reading.layer,
            "pooling": score.reading.pooling,
            "set": score.reading.changes,
            score.result.metric: score.result.score,
            "interval": list(score.result.interval),
        }
        for task, score in top.items()
    }
    return {"layers": count, "tasks": tasks, "recommended": recommended}


def _print(scores: Sequence[LayerScore], by: Sequence[str]) -> None:
    """Print a table for each task, a row a layer, and what is recommended."""
    from embedlm.studies.layer_scores import best

    for task in dict.fromkeys(score.task for score in scores):
        own = [score for score in scores if score.task == task]
        poolings = list(dict.fromkeys(score.reading.pooling for score in own))
        cells: dict[int, dict[str, str]] = {}
        for score in own:
            low, high = score.result.interval
            shown = f"{score.result.score:.3f} [{low:.3f}, {high:.3f}]"
            cells.setdefault(score.reading.layer, {})[score.reading.pooling] = shown
        print(f"{task}, {own[0].result.metric}, {own[0].result.count:,} units")
        print("layer  " + "  ".join(f"{pooling:<20}" for pooling in poolings).rstrip())
        for layer, row in sorted(cells.items()):
            print(f"{layer:>5}  " + "  ".join(f"{row[p]:<20}" for p in poolings).rstrip())
        print()
    for task in by:
        top = best(scores, task)
        print(
            f"{task}: layer {top.reading.layer} by {top.reading.pooling}, {top.result.score:.3f}; "
            f"{_setting(top)}"
        )
    if not by:
        print(
            "No layer is recommended: none of the tasks is a dev task (named ..._dev); name one of "
            "yours with --choose"
        )
