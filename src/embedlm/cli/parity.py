"""`embedlm parity`: where two models or runtimes give different vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from embedlm.cli._options import Dtype, Json, number, path
from embedlm.cli._values import emit
from embedlm.errors import InputError, clipped

if TYPE_CHECKING:
    from embedlm.studies.parity import Comparison

__all__ = ["EXAMPLES", "NAME", "command"]

NAME = "parity"
EXAMPLES = r"""Examples:
  embedlm parity intfloat/e5-small st:intfloat/e5-small --texts sample.txt
  embedlm parity builtin http://localhost:8000/v1#name --texts sample.txt
  embedlm parity builtin builtin --recipe-a prompteol --recipe-b plain-last \
      --texts sample.txt"""


def command(
    a: Annotated[
        str,
        path(
            "A folder, hub id or GGUF file, builtin, st:MODEL (run by sentence-transformers), or "
            "http://host/v1#model.",
            "A",
            None,
        ),
    ],
    b: Annotated[str, path("The model or runtime to compare with A.", "B", None)],
    /,
    *,
    texts: Annotated[str, path("File of texts: .txt (each line is one), .md, .jsonl and others.")],
    recipe_a: Annotated[
        str | None, path("Recipe of A, where EmbedLM runs it.", metavar="RECIPE")
    ] = None,
    recipe_b: Annotated[
        str | None, path("Recipe of B, where EmbedLM runs it.", metavar="RECIPE")
    ] = None,
    role: Annotated[
        str | None,
        Parameter(metavar="ROLE", help="query, document, or another role that both define."),
    ] = None,
    dtype: Dtype = "auto",
    tolerance: Annotated[float, number("Vectors are equal up to this 1 - cosine.")] = 1e-4,
    json: Json = False,
) -> None:
    """Compare two models or runtimes on each text; exit with 1 where they differ."""
    from embedlm.data import read_texts
    from embedlm.studies import compare, open_runtime
    from embedlm.studies.runtimes import is_foreign

    if dtype != "auto" and is_foreign(a) and is_foreign(b):
        raise InputError(
            f"--dtype {dtype} is for models that EmbedLM runs, and it runs neither {a!r} nor "
            f"{b!r}; leave it out"
        )
    lines = [text for text in read_texts(texts) if text]
    sides = [
        open_runtime(spec, recipe, role=role, dtype=dtype)
        for spec, recipe in ((a, recipe_a), (b, recipe_b))
    ]
    comparison = compare(sides[0], sides[1], lines, tolerance=tolerance)
    if json:
        emit(comparison.as_dict())
    else:
        _print(comparison)
    if not comparison.equal:
        raise SystemExit(1)


def _print(comparison: Comparison) -> None:
    """Print a row for each text, the worst first, and the verdict."""
    print(f"{'cosine':>10} {'largest':>10}  {'parts':<8} text")
    for row in comparison.rows:
        shown = clipped(row.text, 48)
        numbers = [
            f"{value:>10.6f}" if value is not None else " " * 10
            for value in (row.cosine, row.largest)
        ]
        print(f"{numbers[0]} {numbers[1]}  {row.parts:<8} {shown}")
        if row.detail:
            print(f"{'':>23}{row.detail}")
    print(comparison.verdict)
