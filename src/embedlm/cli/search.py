"""`embedlm search`: the passages of files that answer a query."""

from __future__ import annotations

import sys
import time
from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._options import (
    AS_LOADED,
    AS_WRITTEN,
    Json,
    Loading,
    Model,
    PassageOptions,
    TextPath,
    TopK,
)
from embedlm.cli._values import show_hits
from embedlm.errors import InputError, closest

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "search"
EXAMPLES = r"""Examples:
  embedlm search docs/ "how do I resume a job?"
  embedlm search notes.md "tyre pressure" --top-k 3
  embedlm search corpus.jsonl "photosynthesis" -m Qwen/Qwen3-0.6B \
      -r promptreps --mode hybrid --json"""


def command(
    source: TextPath,
    query: Annotated[str, Parameter(name="QUERY", help="What to look for.")],
    /,
    *,
    model: Model = None,
    loading: Loading = AS_LOADED,
    mode: Annotated[
        str,
        Parameter(
            metavar="MODE",
            help="dense, sparse, hybrid (both) or late-interaction, as far as the recipe defines "
            "these heads.",
        ),
    ] = "dense",
    top_k: TopK = 10,
    instruction: Annotated[
        str | None,
        Parameter(metavar="TEXT", help="The query's instruction; without it the recipe's."),
    ] = None,
    reading: PassageOptions = AS_WRITTEN,
    json: Json = False,
) -> None:
    """Print the passages of a file or folder that are nearest to a query, with file and line."""
    from embedlm.search import MODES, SearchIndex

    if not query.strip():
        raise InputError("the query is empty; say what to look for")
    if mode not in MODES:
        raise InputError(
            f"search mode {mode!r} is not known; allowed: {', '.join(MODES)}."
            + closest(mode, list(MODES))
        )
    passages = reading.read(source)
    loaded = loading.load(model, heads=MODES[mode])
    loaded.render([query], role="query", instruction=instruction)  # refuses what it cannot use
    if loaded.recipe.pooling.weights != "none":
        loaded.fit([passage.text for passage in passages])
    start = time.perf_counter()
    index = SearchIndex(loaded, passages, mode, show_progress="lines")
    files = len({passage.file for passage in passages})
    print(
        f"embedded {len(passages):,} passages of {files:,} {'file' if files == 1 else 'files'} "
        f"in {time.perf_counter() - start:.1f} s",
        file=sys.stderr,
    )
    show_hits(index.search(query, top_k, instruction=instruction), json=json)
