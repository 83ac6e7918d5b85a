"""`embedlm demonstrations`: which demonstration helps a model's prompt most."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from embedlm.cli._options import AS_LOADED, Json, Loading, ModelName, TopK, path, whole
from embedlm.cli._values import emit, read_demonstrations

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "demonstrations"
EXAMPLES = r"""Choose on a dev set, never on the test set whose results are reported.

Examples:
  embedlm demonstrations builtin-base --dev stsb_dev.jsonl --log search.jsonl
  embedlm demonstrations Qwen/Qwen3-0.6B --dev dev.jsonl \
      --candidates mine.jsonl --json"""


def command(
    model: ModelName,
    /,
    *,
    dev: Annotated[
        str,
        path("Sentence pairs: a file with the fields s1, s2 and score (how similar they are)."),
    ],
    loading: Loading = AS_LOADED,
    candidates: Annotated[
        str | None,
        path("File with the fields query and response; without it sixty built-in candidates."),
    ] = None,
    limit: Annotated[int | None, whole("Try only the first N candidates; without it all.")] = None,
    log: Annotated[
        str | None, path("File that keeps the scores, so that a stopped search goes on.")
    ] = None,
    top_k: TopK = 10,
    json: Json = False,
) -> None:
    """Score demonstrations on a dev set (recipe prompteol-icl) and print the best."""
    from embedlm.evaluation.readers import read_pairs
    from embedlm.jobs.progress import progress
    from embedlm.studies.demonstrations import default_candidates, search_demonstrations

    pairs = read_pairs(Path(dev))
    pool = read_demonstrations(candidates) or default_candidates()
    pool = pool[:limit]
    embedder = loading.load(model, recipe="prompteol-icl")
    with progress(
        sys.stderr.isatty(), len(pool) + 1, unit="demonstration", label="score"
    ) as advance:
        scored = search_demonstrations(
            embedder, pairs, pool, log=None if log is None else Path(log), progress=advance
        )
    if json:
        emit([asdict(entry) for entry in scored[:top_k]])
        return
    for entry in scored[:top_k]:
        shown = f"{entry.query}  ->  {entry.response}" if entry.query else "(no demonstration)"
        print(f"{entry.score:.4f}  {shown}")
