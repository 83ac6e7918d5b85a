"""`embedlm evaluate`: how good a model's vectors are on data sets."""

from __future__ import annotations

import sys
from typing import Annotated

from embedlm.cli._options import AS_LOADED, Data, Json, Loading, ModelName, repeated, whole
from embedlm.cli._values import emit

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "evaluate"
EXAMPLES = """Tasks: sts12, sts13, sts15, sts16, stsb_dev, stsb_test (similarity); scifact,
cranfield, cisi, adi (retrieval); banking77 (classification).

Examples:
  embedlm evaluate builtin --tasks stsb_dev --data data/
  embedlm evaluate builtin --tasks stsb_test,scifact --data data/ --json
  embedlm evaluate Qwen/Qwen3-0.6B -r prompteol --tasks stsb_test --data data/"""


def command(
    model: ModelName,
    /,
    *,
    tasks: Annotated[
        tuple[str, ...],
        repeated("Names of tasks, with commas between", metavar="TASK,..."),
    ] = ("stsb_dev",),
    data: Data = None,
    words: Annotated[
        int | None, whole("Embed only the first N words of each document of a corpus.")
    ] = None,
    loading: Loading = AS_LOADED,
    json: Json = False,
) -> None:
    """Score a model on tasks by their standard metrics."""
    from embedlm.evaluation.tasks import CORPORA, check_tasks, check_words, data_folder, evaluate

    listed = [name.strip() for text in tasks for name in text.split(",") if name.strip()]
    names = list(dict.fromkeys(listed))
    check_tasks(names)
    check_words(names, words)
    folder = data_folder(data)
    embedder = loading.load(None if model == "builtin" else model)
    scores: dict[str, dict[str, float]] = {}
    for name in names:
        own = words if name in CORPORA else None
        (result,) = evaluate(embedder, [name], data=folder, words=own)
        scores[name] = {result.metric: result.score, **result.more}
        if not json:
            print(f"{name:<12} {result.metric:<12} {result.score:.4f}", flush=True)
        else:
            print(f"{name}: {result.seconds:.1f} s", file=sys.stderr)
    if json:
        emit({"tasks": scores})
