"""`embedlm train`: a plan's stages turn a language model into an embedding model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._common import Device, Json, emit, flag

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "train"
EXAMPLES = """Examples:
  embedlm train plan.yaml -o tuned
  embedlm train examples/llm2vec.yaml --scale tiny --data DATA
  embedlm encode texts.txt -m tuned/model -o vectors.npy"""


def command(
    plan: Annotated[
        str,
        Parameter(name="PLAN", help="A .yaml file, or the name of a recipe with a tuning part."),
    ],
    /,
    *,
    output: Annotated[
        str | None,
        Parameter(
            name=["--output", "-o"],
            help="Folder for stages, checkpoints and the model. An interrupted run resumes there. "
            "Default: tuned/PLAN.",
        ),
    ] = None,
    model: Annotated[
        str | None, Parameter(name=["--model", "-m"], help="Train this model, not the plan's.")
    ] = None,
    data: Annotated[
        str | None, Parameter(help="Folder that holds the data sets. Default: $EMBEDLM_DATA.")
    ] = None,
    scale: Annotated[
        str | None,
        Parameter(
            help="tiny: shorten every stage so that two CPU cores can train it; train the built-in "
            "base model, or the one that -m names."
        ),
    ] = None,
    device: Device = None,
    restart: Annotated[bool, flag("Discard what the output folder holds and start again.")] = False,
    json: Json = False,
) -> None:
    """Train a model by the stages of a plan."""
    from embedlm.training import train

    def on_event(kind: str, values: dict[str, Any]) -> None:
        if json:
            emit({"kind": kind, **values})
        else:
            print(_line(kind, values), file=sys.stderr)

    output = output or f"tuned/{Path(plan).stem}"
    if scale == "tiny" and not json:
        trained = f"the model {model}" if model else "the built-in base model"
        print(f"scale tiny: short stages, training {trained}", file=sys.stderr)
    train(
        plan,
        output,
        model=model,
        data=data,
        scale=scale,
        device=device,
        restart=restart,
        on_event=on_event,
    )
    if json:
        emit({"kind": "done", "model": f"{output}/model"})
    else:
        print(f"the model is in {output}/model")


def _line(kind: str, values: dict[str, Any]) -> str:
    """Return the line that reports an event."""
    if kind == "stage":
        return f"stage {values['stage']}: from {values['model']}"
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
