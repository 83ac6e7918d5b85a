"""`embedlm compare`: which of two models is better, by how much and how sure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from embedlm.cli._options import AS_LOADED, Json, Loading, path
from embedlm.cli._scoring import AS_NAMED, Scoring
from embedlm.cli._values import emit
from embedlm.cli._vectors import AS_GIVEN, VectorForm
from embedlm.errors import InputError, clipped

if TYPE_CHECKING:
    from embedlm.evaluation.comparison import Comparison
    from embedlm.evaluation.results import Result

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "compare"
EXAMPLES = r"""Without --suite and --tasks the task is stsb_dev.

A difference above 0 says that B is better. Of a bias or a loss, the model
whose value lies closer to the ideal is better. p comes from a paired
permutation test and is corrected by Holm for the number of tasks.

Examples:
  embedlm compare builtin-base builtin --suite quick --data data/
  embedlm compare before.json after.json
  embedlm compare model/ tuned/ --tasks adi,scifact --data data/ --json
  embedlm compare builtin-base builtin-base --recipe-a prompteol \
      --recipe-b plain-mean --suite sts --data data/"""


def command(
    a: Annotated[
        str,
        path(
            "A folder, hub id or GGUF file, builtin, or a result of embedlm evaluate -o.",
            "A",
            None,
        ),
    ],
    b: Annotated[str, path("What is compared with A.", "B", None)],
    /,
    *,
    scoring: Scoring = AS_NAMED,
    loading: Loading = AS_LOADED,
    form: VectorForm = AS_GIVEN,
    recipe_a: Annotated[
        str | None, path("Recipe of A alone.", metavar="RECIPE", group="Model")
    ] = None,
    recipe_b: Annotated[
        str | None, path("Recipe of B alone.", metavar="RECIPE", group="Model")
    ] = None,
    json: Json = False,
) -> None:
    """Compare two models on each task: a paired test, an interval, and where they differ."""
    from embedlm.evaluation.comparison import compare

    recipes = (recipe_a, recipe_b)
    files = [name.endswith(".json") for name in (a, b)]
    given = scoring != AS_NAMED or loading != AS_LOADED or form != AS_GIVEN or any(recipes)
    if all(files) and given:
        raise InputError(
            "two result files are compared as they are; leave the options of tasks, models and "
            "vectors out"
        )
    sides = [
        _read(name) if file else _scored(name, recipe, scoring, loading, form)
        for name, file, recipe in zip((a, b), files, recipes, strict=True)
    ]
    names = [_called(name, recipe) for name, recipe in zip((a, b), recipes, strict=True)]
    comparison = compare(sides[0], sides[1], (names[0], names[1]))
    if json:
        emit(comparison.as_dict())
    else:
        _print(comparison)


def _called(name: str, recipe: str | None) -> str:
    """Return what a side is called: a file by its name, a model also by its recipe."""
    if name.endswith(".json"):
        return Path(name).name
    return name if recipe is None else f"{name} by {recipe}"


def _read(name: str) -> list[Result]:
    from embedlm.evaluation.results import read_results

    return read_results(Path(name)).results


def _scored(
    name: str, recipe: str | None, scoring: Scoring, loading: Loading, form: VectorForm
) -> list[Result]:
    """Return a model's results; those of its finished tasks are kept from earlier runs."""
    import dataclasses

    if recipe is not None:
        loading = dataclasses.replace(loading, recipe=recipe)
    run = scoring.run(lambda: loading.load(name), form.form(), scoring.found())
    return list(run.results())


def _print(comparison: Comparison) -> None:
    """Print a line for each task, the mean, the verdict, and the units that differ most."""
    print(f"A {comparison.a}\nB {comparison.b}")
    for row in comparison.tasks:
        low, high = row.interval
        better = {"a": "A better", "b": "B better", "": "not decided"}[row.better]
        print(
            f"{row.task:<22} {row.metric:<11} {row.a:7.4f} {row.b:7.4f}  {row.difference:+.4f} "
            f"[{low:+.4f}, {high:+.4f}]  p {row.p_holm:.4f}  {better}; could find "
            f"{row.detectable:.4f}"
        )
    low, high = comparison.mean_interval
    print(f"{'mean':<51} {comparison.mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    print(comparison.verdict)
    for task, reason in comparison.left_out.items():
        print(f"{task:<22} left out: {reason}")
    for row in comparison.tasks:
        if not row.queries:
            continue
        print(f"\n{row.task}: where they differ most ({row.unit}, A, B)")
        for unit in row.queries:
            text = " | ".join(" ".join(text.split()) for text in unit["texts"])
            shown = clipped(text, 100)
            print(f"  {unit['id']:<8} {unit['a']:.3f} {unit['b']:.3f}  {shown}")
