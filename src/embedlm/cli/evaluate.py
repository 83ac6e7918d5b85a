"""`embedlm evaluate`: how good a model's vectors are on data sets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from embedlm.cli._options import AS_LOADED, Json, Loading, ModelName, path
from embedlm.cli._scoring import AS_NAMED, Scoring, score_line
from embedlm.cli._values import emit
from embedlm.cli._vectors import AS_GIVEN, VectorForm
from embedlm.errors import InputError

if TYPE_CHECKING:
    from embedlm.evaluation.results import Result

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "evaluate"
EXAMPLES = r"""Without --suite and --tasks the task is stsb_dev.

Each line has the task, its main metric with a 95 % interval, and how many
queries, pairs or texts it is of. Finished tasks are kept: a run that was
stopped goes on where it was.

Examples:
  embedlm evaluate builtin --suite quick --data data/
  embedlm evaluate builtin --tasks stsb_test,scifact --data data/ --json
  embedlm evaluate Qwen/Qwen3-0.6B -r prompteol --suite sts --data data/ \
      -o result.json
  embedlm evaluate model/ --suite mine.yaml --data data/ --dim 128 \
      --precision binary
  embedlm evaluate model/ --suite bias --data data/
  embedlm evaluate model/ --tasks STS12,SciFact
  embedlm evaluate model/ --suite sts --data data/ \
      --contamination train.jsonl"""


Told = tuple[dict[str, Any], dict[str, dict[str, str]], dict[str, str]]
"""Which model it is, the hashes of each task's files, and the missing file of those left out."""


def command(
    model: ModelName,
    /,
    *,
    scoring: Scoring = AS_NAMED,
    loading: Loading = AS_LOADED,
    form: VectorForm = AS_GIVEN,
    calibration: Annotated[
        str | None,
        path("Texts that set the ranges of int8 and uint8; without it the model's own ranges do."),
    ] = None,
    contamination: Annotated[
        str | None,
        path(
            "A file of training data: how many of the tasks' texts are in it, and the score "
            "without these."
        ),
    ] = None,
    output: Annotated[
        str | None,
        path("Write all results to a .json file, with a score for each query.", ["-o", "--output"]),
    ] = None,
    json: Json = False,
) -> None:
    """Score a model on tasks by their standard metrics, with intervals."""
    from embedlm.evaluation.results import write_results
    from embedlm.evaluation.tasks import of_mteb
    from embedlm.jobs.names import check_file

    check_file(output, [".json"])
    results: list[Result] = []

    def told(result: Result) -> None:
        results.append(result)
        _tell(result, json=json)

    def load() -> Any:
        return _loaded(model, loading, calibration, form)

    if of_mteb(scoring.names()):
        described, data, missing = _by_mteb(model, scoring, loading, form, load, told)
    else:
        described, data, missing = _by_us(scoring, form, load, told)
    more = _more(results, contamination, missing)
    if output is not None:
        given = {"suite": scoring.suite, **more}
        write_results(Path(output), results, described, data=data, more=given)
    if json:
        emit({"tasks": {result.task: result.scores() for result in results}, **more})
    else:
        _print(more)


def _tell(result: Result, *, json: bool) -> None:
    """Print a result's line; where JSON is printed, say on standard error that it is there."""
    if not json:
        print(score_line(result), flush=True)
        for part in ("left_out", "not_found"):
            for what, count in result.notes.get(part, {}).items():
                print(f"{'':<22} {part.replace('_', ' ')}: {count:,} {what}", flush=True)
        return
    kept = "kept from an earlier run" if result.cached else f"{result.seconds:.1f} s"
    print(f"{result.task}: {kept}", file=sys.stderr)


def _by_us(
    scoring: Scoring, form: VectorForm, load: Callable[[], Any], told: Callable[[Result], None]
) -> Told:
    """Score a model on our own tasks."""
    found = scoring.found()
    run = scoring.run(load, form.form(), found)
    for result in run.results():
        told(result)
    return run.described(), run.data, found[2]


def _by_mteb(
    model: str,
    scoring: Scoring,
    loading: Loading,
    form: VectorForm,
    load: Callable[[], Any],
    told: Callable[[Result], None],
) -> Told:
    """Score a model on tasks of mteb, which has its own hashes and misses no file."""
    from embedlm.evaluation.mteb_models import mteb_model
    from embedlm.evaluation.mteb_tasks import mteb_results
    from embedlm.evaluation.tasks import check_for_mteb, data_folder
    from embedlm.rerank.reranker import is_reranker

    given = {name: getattr(scoring, name) for name in ("suite", "words", "skip_missing")}
    check_for_mteb(given)
    if scoring.cache == "none":
        raise InputError("mteb keeps its results in files; give --cache DIR, or leave it out")
    adapter = mteb_model(loading.reranker(model) if is_reranker(model) else load(), **form.form())
    mteb_results(
        adapter,
        scoring.names(),
        data=None if scoring.data is None else data_folder(scoring.data),
        cache=Path(scoring.cache) if scoring.cache else None,
        restart=scoring.restart,
        on_result=told,
    )
    meta = adapter.mteb_model_meta
    return {"name": meta.name, "revision": meta.revision, "options": form.form()}, {}, {}


def _loaded(model: str, loading: Loading, calibration: str | None, form: VectorForm) -> Any:
    """Return a model, with the ranges that the texts of a file have, where one is named."""
    embedder = loading.load(model)
    return embedder if calibration is None else _calibrated(embedder, calibration, form)


def _calibrated(embedder: Any, texts: str, form: VectorForm) -> Any:
    """Return a model with the ranges of int8 and uint8 that texts have."""
    from embedlm.data import read_texts

    options = {name: v for name, v in form.form().items() if name in ("dim", "normalize")}
    return embedder.fit_ranges(list(read_texts(texts)), **options)


def _more(results: list[Result], training: str | None, missing: dict[str, str]) -> dict[str, Any]:
    """Return what is told beside the scores: tasks that were left out, and contamination."""
    from embedlm.evaluation.contamination import contamination

    more: dict[str, Any] = {"skipped": missing} if missing else {}
    if training is not None:
        more["contamination"] = contamination(results, Path(training))
    return more


def _print(more: dict[str, Any]) -> None:
    for task, file in more.get("skipped", {}).items():
        print(f"{task:<22} left out: {file} is not there")
    for task, told in more.get("contamination", {}).items():
        without = told["score_without"]
        rest = "" if without is None else f"; score without them {without:.4f}"
        print(f"{task:<22} {told['seen']:,} of {told['n']:,} are in the training file{rest}")
