"""`embedlm similarity`: how similar texts are."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import (
    AS_IS,
    AS_LOADED,
    Encoding,
    Heads,
    Json,
    Loading,
    Model,
    Weights,
)
from embedlm.cli._values import emit, parse_heads, parse_weights
from embedlm.errors import InputError, clipped

__all__ = ["EXAMPLES", "NAME", "USAGE", "command"]

NAME = "similarity"
USAGE = "Usage: embedlm similarity [OPTIONS] TEXT TEXT..."
EXAMPLES = r"""Examples:
  embedlm similarity "a river" "a stream" "a bank"
  embedlm similarity -- "-5 degrees" "freezing"
  embedlm similarity "good" "bad" -m Qwen/Qwen3-0.6B -r prompteol
  embedlm similarity "a river" "a stream" -m Qwen/Qwen3-0.6B -r promptreps \
      --heads dense,sparse --weights 0.7,0.3"""


def command(
    *texts: Annotated[str, Parameter(name="TEXT", help="Two texts or more.")],
    model: Model = None,
    loading: Loading = AS_LOADED,
    prompting: Encoding = AS_IS,
    heads: Heads = None,
    weights: Weights = None,
    json: Json = False,
) -> None:
    """Print how similar each text is to every other one."""
    if len(texts) < 2:
        raise InputError(
            f"{len(texts)} {'text was' if len(texts) == 1 else 'texts were'} given; give two or "
            "more, e.g. "
            'embedlm similarity "a river" "a stream"'
        )
    requested = parse_heads(heads)
    loaded = loading.load(model, heads=requested)
    embedded = loaded.encode(list(texts), heads=requested, **prompting.options())
    scores = loaded.similarity(embedded, embedded, weights=parse_weights(weights))
    if json:
        emit({"texts": list(texts), "scores": [[float(f"{v:.7g}") for v in row] for row in scores]})
    else:
        _print(list(texts), scores)


def _print(texts: list[str], scores: Any) -> None:
    """Print the matrix, its columns numbered, a text at the end of each row."""
    width = max(8, *(len(f"{value:.4f}") + 1 for row in scores for value in row))
    print(" " * 4 + "".join(f"{number:>{width}}" for number in range(1, len(texts) + 1)))
    for number, (row, text) in enumerate(zip(scores, texts, strict=True), 1):
        shown = clipped(" ".join(text.split()))
        print(f"{number:>4}" + "".join(f"{value:>{width}.4f}" for value in row) + f"  {shown}")
