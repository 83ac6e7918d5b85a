"""`embedlm merge`: a weighted mean of models of one architecture."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._common import Device, Json, emit, parse_weights
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "merge"
EXAMPLES = """Examples:
  embedlm merge tuned/stage-1-weak/model tuned/model -o merged
  embedlm merge general special -o merged --weights 0.7,0.3
  embedlm merge general special -o merged --examples dev.jsonl"""


def command(
    *models: Annotated[str, Parameter(name="MODEL", help="Two folders or hub ids, or more.")],
    output: Annotated[str, Parameter(name=["--output", "-o"], help="Folder of the merged model.")],
    weights: Annotated[
        str | None, Parameter(help="A number for each model, e.g. 0.7,0.3; without it 1 each.")
    ] = None,
    examples: Annotated[
        str | None,
        Parameter(
            help="File of scored pairs or queries: the better a model is on it, the more it weighs."
        ),
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write the weighted mean of models."""
    from embedlm.training.merging import cocktail_weights, merge

    if weights is not None and examples is not None:
        raise InputError("--weights and --examples both say how much a model weighs; give one")
    share = parse_weights(weights)
    if examples is not None:
        share = cocktail_weights(models, examples, device=device)
    merge(models, output, weights=share, device=device)
    if json:
        emit({"model": output, "weights": share})
    else:
        told = "" if share is None else f", weighted {', '.join(f'{part:.3f}' for part in share)}"
        print(f"{len(models)} models -> {output}{told}")
