"""`embedlm search`: the passages of files that answer a query."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._common import (
    AS_LOADED,
    Json,
    Loading,
    Model,
    Place,
    Quoting,
    Split,
    TextField,
    show_hits,
)

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "search"
EXAMPLES = """Examples:
  embedlm search docs/ "how do I resume a job?"
  embedlm search notes.md "tyre pressure" --top-k 3
  embedlm search corpus.jsonl "photosynthesis" -m FOLDER -r promptreps --mode hybrid --json"""


def command(
    place: Place,
    query: Annotated[str, Parameter(name="QUERY", help="What to look for.")],
    /,
    *,
    model: Model = None,
    loading: Loading = AS_LOADED,
    mode: Annotated[
        str, Parameter(help="dense, sparse, hybrid (both) or late-interaction.")
    ] = "dense",
    top_k: Annotated[int, Parameter(name=["--top-k", "-k"], help="How many hits.")] = 10,
    instruction: Annotated[
        str | None, Parameter(help="Of the query; without it the recipe's.")
    ] = None,
    split: Split = "paragraph",
    text_field: TextField = "text",
    quoting: Quoting = None,
    json: Json = False,
) -> None:
    """Print the passages of a file or folder that are nearest to a query, with file and line."""
    from embedlm.search import MODES, SearchIndex, read_passages

    passages = read_passages(place, split=split, text_field=text_field, quoting=quoting)
    loaded = loading.load(model, heads=MODES.get(mode))
    if loaded.recipe.pooling.weights != "none":
        loaded.fit([passage.text for passage in passages])
    index = SearchIndex(loaded, passages, mode)
    show_hits(index.search(query, top_k, instruction=instruction), json=json)
