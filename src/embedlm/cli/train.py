"""`embedlm train`: a plan's stages turn a language model into an embedding model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import Data, Device, Json, flag, path
from embedlm.cli._values import emit

__all__ = ["EXAMPLES", "NAME", "command", "event_line"]

NAME = "train"
EXAMPLES = """Examples:
  embedlm train plan.yaml -o tuned
  embedlm train examples/llm2vec.yaml --scale tiny --data DATA
  embedlm encode texts.txt -m tuned/model -o vectors.npy"""


def command(
    plan: Annotated[
        str, path("A .yaml file, or the name of a recipe with a tuning part.", "PLAN", None)
    ],
    /,
    *,
    output: Annotated[
        str | None,
        path(
            "Folder for stages, checkpoints and the model; without it tuned/PLAN. An interrupted "
            "run resumes there.",
            ["--output", "-o"],
            "DIR",
        ),
    ] = None,
    model: Annotated[
        str | None, path("Train this model, not the plan's.", ["--model", "-m"], "MODEL")
    ] = None,
    data: Data = None,
    scale: Annotated[
        str | None,
        Parameter(
            metavar="SCALE",
            help="tiny: shorten every stage so that two CPU cores can train it; train the built-in "
            "base model, or the one that -m names.",
        ),
    ] = None,
    device: Device = None,
    restart: Annotated[bool, flag("Discard what the output folder holds and start again.")] = False,
    json: Json = False,
) -> None:
    """Train a model by the stages of a plan."""
    from embedlm.training import train

    output = output or f"tuned/{Path(plan).stem}"
    if scale == "tiny" and not json:
        trained = f"the model {model}" if model else "the built-in base model"
        print(f"scale tiny: short stages, training {trained}", file=sys.stderr)
    report = _report_json if json else _report
    given: dict[str, Any] = {"model": model, "data": data, "scale": scale, "device": device}
    train(plan, output, restart=restart, on_event=report, **given)
    if json:
        emit({"kind": "done", "model": f"{output}/model"})
    else:
        print(f"the model is in {output}/model")


def _report_json(kind: str, values: dict[str, Any]) -> None:
    emit({"kind": kind, **values})


def _report(kind: str, values: dict[str, Any]) -> None:
    print(event_line(kind, values), file=sys.stderr)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def event_line(kind: str, values: dict[str, Any]) -> str:
    """Return the line that reports an event."""
    if kind == "stage":
        return f"stage {values['stage']}: from {values['model']}"
    if kind == "start":
        return f"{values['stage']}  step {values['step']}/{values['of']}"
    if kind in ("ridge", "prune"):
        facts = {key: value for key, value in values.items() if key != "stage"}
        return f"{kind}: " + ", ".join(f"{name} {_number(facts[name])}" for name in facts)
    if kind == "resume":
        if values.get("finished"):
            return f"stage {values['stage']}: finished before, not trained again"
        return f"{values['stage']}  resumes after step {values['step']}/{values['of']}"
    if kind == "dev":
        metric, score = values["metric"], values["score"]
        return f"{values['stage']}  step {values['step']}: dev {metric} {score:.4f}"
    shown = {k: v for k, v in values.items() if k not in ("stage", "step", "of", "rate", "s")}
    losses = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
    seconds = f"{values['s']:.0f} s"
    where = f"{values['stage']}  step {values['step']}/{values['of']}"
    return f"{where}  {losses}  rate {values['rate']:.2e}  {seconds}"
