"""`embedlm study`: controlled comparisons, each with a verdict and how sure it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from embedlm.cli._options import Device, Dtype, Json, flag, path
from embedlm.cli._reporting import AS_TOLD, Reporting
from embedlm.cli._scoring import AS_NAMED, Scoring
from embedlm.cli._values import emit

if TYPE_CHECKING:
    from embedlm.evaluation.results import Result
    from embedlm.studies.design import Study, Variant
    from embedlm.studies.study import StudyReport

__all__ = ["EXAMPLES", "NAME", "USAGE", "command"]

NAME = "study"
USAGE = "Usage: embedlm study [OPTIONS] [STUDY]"
EXAMPLES = r"""Without --suite and --tasks the tasks are the study's own.

A study is a .yaml file; some come with the package: embedlm study --list.
Finished tasks and trained models are kept: a study that was stopped goes on
where it was.

Examples:
  embedlm study pooling -m model.gguf --data data/ -o pooling.html
  embedlm study mine.yaml --data data/ --dry-run
  embedlm study dimensions -m model/ --suite pages.yaml --data data/ --json"""


def command(
    name: Annotated[
        str | None, path("A study of the package, or a .yaml file.", "STUDY", None)
    ] = None,
    /,
    *,
    model: Annotated[
        str | None,
        path(
            "A folder, hub id or GGUF file; without it the study's, else the built-in model.",
            ["--model", "-m"],
            "MODEL",
        ),
    ] = None,
    scoring: Scoring = AS_NAMED,
    device: Device = None,
    dtype: Dtype = "auto",
    reporting: Reporting = AS_TOLD,
    work: Annotated[
        str | None,
        path(
            "Folder of the models that the study trains; without it one in EMBEDLM_CACHE.",
            metavar="DIR",
        ),
    ] = None,
    dry_run: Annotated[bool, flag("Print the variants and tasks, and do nothing.")] = False,
    listed: Annotated[bool, flag("Print the studies of the package.", "--list")] = False,
    json: Json = False,
) -> None:
    """Vary one thing at a time, or a grid, and test what it changes."""
    from embedlm.errors import InputError
    from embedlm.studies.design import Study, studies

    if listed:
        _list([Study.load(known) for known in studies()], json=json)
        return
    if name is None:
        raise InputError(f"no study was given; allowed: {', '.join(studies())}, or a .yaml file")
    reporting.check(name)
    study = Study.load(name)
    if dry_run:
        _print_design(study, scoring, json=json)
        return
    facts = {"work": work, "device": device, "dtype": dtype}
    report = _run(study, model, scoring, facts, show=_tell if json else _show)
    if not json:
        print()
        print("\n".join(report.verdict))
    reporting.write(study.name, report.as_dict(), json=json)


def _run(
    study: Study, model: str | None, scoring: Scoring, facts: dict[str, Any], *, show: Any
) -> StudyReport:
    """Run a study on its own tasks, or on those that were named."""
    from embedlm.evaluation.results import Cache
    from embedlm.studies.study import run_study

    kept = Cache(Path(scoring.cache) if scoring.cache else None)
    return run_study(
        study,
        model,
        tasks=scoring.chosen() if scoring.suite or scoring.tasks else None,
        data=scoring.data,
        words=scoring.words,
        cache=None if scoring.cache == "none" else kept,
        restart=scoring.restart,
        skip_missing=scoring.skip_missing,
        on_result=show,
        **facts,
    )


def _list(found: list[Study], *, json: bool) -> None:
    """Print each study with its question."""
    if json:
        emit([{"name": study.name, "question": study.question} for study in found])
        return
    for study in found:
        print(f"{study.name:<20} {study.question}")


def _print_design(study: Study, scoring: Scoring, *, json: bool) -> None:
    """Print what a study would do."""
    from embedlm.evaluation.tasks import select
    from embedlm.studies.design import variants

    given = scoring.suite or scoring.tasks
    tasks = scoring.chosen() if given else study.own_tasks() or select(None, study.suite)
    settings = {
        variant.label: variant.settings.model_dump(mode="json", exclude_defaults=True)
        for variant in variants(study)
    }
    if json:
        emit(
            {
                "name": study.name,
                "question": study.question,
                "tasks": list(tasks),
                "variants": [{"label": name, "settings": own} for name, own in settings.items()],
            }
        )
        return
    print(f"{study.name}: {study.question}")
    print(f"tasks: {', '.join(tasks)}")
    for number, (label, own) in enumerate(settings.items()):
        told = ", ".join(f"{key}={value}" for key, value in own.items())
        print(f"{'baseline' if not number else '':<9} {label:<28} {told}")


def _show(variant: Variant, result: Result) -> None:
    from embedlm.cli._scoring import score_line

    print(f"{variant.label:<28} {score_line(result)}", flush=True)


def _tell(variant: Variant, result: Result) -> None:
    import sys

    kept = "kept from an earlier run" if result.cached else f"{result.seconds:.1f} s"
    print(f"{variant.label}, {result.task}: {kept}", file=sys.stderr)
