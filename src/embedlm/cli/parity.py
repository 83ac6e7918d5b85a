"""`embedlm parity`: where two models or runtimes part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._common import Json, emit

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "parity"
EXAMPLES = """Examples:
  embedlm parity FOLDER st:FOLDER --texts sample.txt
  embedlm parity FOLDER http://localhost:8000/v1#name --texts sample.txt --role query
  embedlm parity builtin builtin --recipe-a prompteol --recipe-b plain-last --texts sample.txt"""


def command(
    a: Annotated[
        str, Parameter(help="Folder, hub id, builtin, st:FOLDER or http://host/v1#model.")
    ],
    b: Annotated[str, Parameter(help="The same.")],
    *,
    texts: Annotated[
        Path, Parameter(help="File of texts: .txt (a text a line), .md, .jsonl, .csv, and others.")
    ],
    recipe_a: Annotated[str | None, Parameter(help="For A, where EmbedLM runs it.")] = None,
    recipe_b: Annotated[str | None, Parameter(help="For B.")] = None,
    role: Annotated[str | None, Parameter(help="query, document, or another both know.")] = None,
    dtype: Annotated[str, Parameter(help="auto, float32, bfloat16 or float16.")] = "auto",
    tolerance: Annotated[float, Parameter(help="1 - cosine that still counts as equal.")] = 1e-4,
    json: Json = False,
) -> None:
    """Compare two models or runtimes on each text, and say where they part.

    Exit status 1 if they do.
    """
    from embedlm.data import read_texts
    from embedlm.studies import compare, open_runtime

    lines = [text for text in read_texts(texts) if text]
    sides = [
        open_runtime(spec, recipe, role=role, dtype=dtype)
        for spec, recipe in ((a, recipe_a), (b, recipe_b))
    ]
    found = compare(sides[0], sides[1], lines, tolerance=tolerance)
    if json:
        emit(found.as_dict())
    else:
        print(f"{'cosine':>10} {'largest':>10}  {'parts':<8} text")
        for row in found.rows:
            shown = row.text if len(row.text) <= 48 else row.text[:45] + "..."
            numbers = [
                f"{value:>10.6f}" if value is not None else " " * 10
                for value in (row.cosine, row.largest)
            ]
            print(f"{numbers[0]} {numbers[1]}  {row.parts:<8} {shown}")
            if row.detail:
                print(f"{'':>23}{row.detail}")
        print(found.verdict)
    if not found.equal:
        raise SystemExit(1)
