"""`embedlm merge`: a weighted mean of models of one architecture."""

from __future__ import annotations

from typing import Annotated

from embedlm.cli._options import Device, Json, SaveDtype, Weights, path
from embedlm.cli._values import emit, parse_weights
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "USAGE", "command"]

NAME = "merge"
USAGE = "Usage: embedlm merge --output DIR [OPTIONS] MODEL MODEL..."
EXAMPLES = """Examples:
  embedlm merge tuned/stage-1-weak/model tuned/model -o merged
  embedlm merge general special -o merged --weights 0.7,0.3
  embedlm merge general special -o merged --examples dev.jsonl"""


def command(
    *models: Annotated[str, path("Two or more folders, hub ids or GGUF files.", "MODEL", None)],
    output: Annotated[str, path("New folder for the merged model.", ["--output", "-o"], "DIR")],
    weights: Weights = None,
    examples: Annotated[
        str | None,
        path(
            "File of scored pairs, or of queries with positives: a model with a better score on "
            "it gets a larger weight."
        ),
    ] = None,
    dtype: SaveDtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write a model whose weights are the weighted mean of several models' weights."""
    from embedlm.training.merging import check_output, cocktail_weights, merge

    if weights is not None and examples is not None:
        raise InputError(
            "--weights and --examples both set the weight of each model; give one of them"
        )
    check_output(models, output)
    share = parse_weights(weights)
    if examples is not None:
        share = cocktail_weights(models, examples, device=device)
    merge(models, output, weights=share, save_dtype=dtype, device=device)
    if json:
        emit({"model": output, "weights": share})
    else:
        detail = "" if share is None else f", weighted {', '.join(f'{part:.3f}' for part in share)}"
        print(f"{len(models)} models -> {output}{detail}")
