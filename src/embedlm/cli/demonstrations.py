"""`embedlm demonstrations`: which demonstration helps a model's prompt most."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._common import AS_LOADED, Json, Loading, emit, read_demonstrations
from embedlm.errors import InputError, RecordError

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "demonstrations"
EXAMPLES = """Choose by a dev set, never by the test set that results are told of.

Examples:
  embedlm demonstrations FOLDER --dev stsb_dev.jsonl --log search.jsonl
  embedlm demonstrations Qwen/Qwen3-0.6B --dev dev.jsonl --candidates mine.jsonl --json"""
_NAMES = (("s1", "s2"), ("sentence1", "sentence2"))


def command(
    model: Annotated[str, Parameter(name="MODEL", help="Folder or hub id, or builtin.")],
    /,
    *,
    dev: Annotated[
        str, Parameter(help=".jsonl of {s1, s2, score}: two sentences and how alike they are.")
    ],
    loading: Loading = AS_LOADED,
    candidates: Annotated[
        str | None,
        Parameter(help="JSON file: a list of {query, response}; without it sixty built in."),
    ] = None,
    limit: Annotated[int | None, Parameter(help="Try only the first candidates.")] = None,
    log: Annotated[
        str | None, Parameter(help="Scores are kept here; run again, the search goes on.")
    ] = None,
    top_k: Annotated[int, Parameter(name=["--top-k", "-k"], help="How many to print.")] = 10,
    json: Json = False,
) -> None:
    """Score demonstrations on a dev set (recipe prompteol-icl) and print the best."""
    from embedlm.jobs.progress import progress
    from embedlm.studies.demonstrations import default_candidates, search_demonstrations

    for name, value in (("--limit", limit), ("--top-k", top_k)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; give a number above 0")
    pairs = _pairs(Path(dev))
    pool = read_demonstrations(candidates) or default_candidates()
    pool = pool[:limit]
    embedder = loading.load(model, recipe="prompteol-icl")
    with progress(sys.stderr.isatty(), len(pool) + 1, unit="demonstration", label="score") as moved:
        found = search_demonstrations(
            embedder, pairs, pool, log=None if log is None else Path(log), progress=moved
        )
    if json:
        emit([asdict(one) for one in found[:top_k]])
        return
    for one in found[:top_k]:
        shown = f"{one.query}  ->  {one.response}" if one.query else "(no demonstration)"
        print(f"{one.score:.4f}  {shown}")


def _pairs(path: Path) -> list[tuple[str, str, float]]:
    """Return the sentence pairs of a dev set."""
    from embedlm.data import read_lines

    pairs = []
    for number, record in enumerate(read_lines(path), 1):
        names = next((pair for pair in _NAMES if all(name in record for name in pair)), None)
        score = record.get("score")
        if names is None or not isinstance(score, int | float):
            raise RecordError(
                f"{path}:{number}: give the fields s1 and s2 (or sentence1 and sentence2) with "
                f"sentences and score with a number; there are: {', '.join(record) or 'none'}"
            )
        pairs.append((str(record[names[0]]), str(record[names[1]]), float(score)))
    return pairs
