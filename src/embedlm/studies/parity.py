"""Where two models differ, text by text: in tokens, in pooling, or in numbers.

Shapes: n texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedlm.errors import EmbedLMError, InputError
from embedlm.loader import load
from embedlm.readout.similarity import cosine
from embedlm.schema.recipe import POOLINGS
from embedlm.studies.runtimes import Runtime, Vectors

__all__ = ["Comparison", "TextComparison", "compare"]

EQUAL = 1e-4
"""Two vectors are equal up to this 1 - cosine."""
_SHOWN = 4
"""Tokens shown on each side of the first that differs."""


@dataclass(frozen=True, slots=True)
class TextComparison:
    """How the two sides' vectors of one text differ."""

    text: str
    parts: str
    """equal, tokens, pooling, length (of the vectors), width or numbers."""
    cosine: float | None
    largest: float | None
    """Largest absolute difference."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of every text, and a verdict on all of them."""

    rows: list[TextComparison]
    verdict: str

    @property
    def equal(self) -> bool:
        """Whether the two sides agree on every text."""
        return all(row.parts == "equal" for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        rows = [asdict(row) for row in self.rows]
        return {"equal": self.equal, "verdict": self.verdict, "rows": rows}


def compare(
    a: Runtime, b: Runtime, texts: Sequence[str], *, tolerance: float = EQUAL
) -> Comparison:
    """Compare two runtimes on the same texts.

    Token ids are compared where both sides report them. Where the tokens are the same and the
    vectors are not, EmbedLM's side is run again with every other pooling and with the other
    direction of attention; if one of these gives the other side's vectors, that is the difference.

    Args:
        a: the first runtime.
        b: the second runtime.
        texts: at least one.
        tolerance: two vectors are equal up to this 1 - cosine.

    Raises:
        InputError: no texts.
    """
    if not texts:
        raise InputError("there are no texts to compare; give at least one")
    a_nD, b_nD = a.vectors(texts), b.vectors(texts)
    tokens = _tokens(a, b, texts)
    if a_nD.shape[1] != b_nD.shape[1]:
        what = f"vectors of width {a_nD.shape[1]} and {b_nD.shape[1]}"
        rows = [TextComparison(text, "width", None, None, what) for text in texts]
        return Comparison(rows, f"they give {what}: not the same model")
    cosines = cosine(a_nD, b_nD, pairwise=True)
    largest = np.abs(a_nD - b_nD).max(axis=1)
    close = 1 - cosines <= tolerance
    other = _other_way(a, b, texts, a_nD, b_nD, tolerance) if not close.all() else None
    rows = []
    for i, text in enumerate(texts):
        parts, detail = "equal", ""
        if not close[i]:
            detail = tokens[i] or other or ""
            parts = "tokens" if tokens[i] else "pooling" if other else "numbers"
        elif largest[i] > max(tolerance, 1e-3) * max(1.0, float(np.abs(a_nD[i]).max())):
            parts = "length"
            lengths = [float(np.linalg.norm(v[i])) for v in (a_nD, b_nD)]
            detail = f"vectors of length {lengths[0]:.4g} and {lengths[1]:.4g}"
        elif tokens[i]:
            detail = f"equal, though the tokens differ: {tokens[i]}"
        rows.append(TextComparison(text, parts, float(cosines[i]), float(largest[i]), detail))
    return Comparison(rows, _verdict(rows))


def _tokens(a: Runtime, b: Runtime, texts: Sequence[str]) -> list[str]:
    """Return for each text how its tokens differ; empty where they agree or are not reported."""
    left, right = a.ids(texts), b.ids(texts)
    if left is None or right is None:
        return [""] * len(texts)
    return [_first_difference(a, b, x, y) for x, y in zip(left, right, strict=True)]


def _first_difference(a: Runtime, b: Runtime, x: list[int], y: list[int]) -> str:
    if x == y:
        return ""
    pairs = zip(x, y, strict=False)
    at = next((i for i, (left, right) in enumerate(pairs) if left != right), min(len(x), len(y)))
    span = slice(max(0, at - _SHOWN), at + _SHOWN)
    left, right = x[at : at + 1], y[at : at + 1]
    return (
        f"token {at} of {len(x)} and {len(y)}: {left} and {right}, "
        f"{a.spell(x[span])!r} and {b.spell(y[span])!r}"
    )


def _other_way(
    a: Runtime, b: Runtime, texts: Sequence[str], a_nD: Vectors, b_nD: Vectors, tolerance: float
) -> str | None:
    """Return the change of EmbedLM's recipe that gives the other side's vectors."""
    for side, other_nD in ((a, b_nD), (b, a_nD)):
        if side.kind != "embedlm":
            continue
        recipe = side.model.recipe
        changes: list[dict[str, Any]] = [
            {"pooling.kind": kind, "pooling.over": over}
            for over in (recipe.pooling.over, "all", ("text",))
            for kind in POOLINGS
        ]
        turned = "bidirectional" if side.model.backbone.causal else "causal"
        changes += [{"backbone.attention": turned}]
        for change in changes:
            changed_nD = _under(side, change, texts)
            if changed_nD is None or changed_nD.shape != other_nD.shape:
                continue
            if (1 - cosine(changed_nD, other_nD, pairwise=True) <= tolerance).all():
                settings = ", ".join(f"{key}: {value}" for key, value in change.items())
                return f"the other side does as {side.name} would with {settings}"
    return None


def _under(side: Runtime, change: dict[str, Any], texts: Sequence[str]) -> Vectors | None:
    """Return EmbedLM's vectors under a changed recipe; None where the model cannot do it."""
    model = side.model
    try:
        recipe = model.recipe.override(change)
        if "backbone.attention" in change:
            # The direction is proven at load, so this is another network.
            changed = load(model.name, recipe, device=model.device, dtype=model.backbone.dtype)
        else:
            changed = model.with_recipe(recipe)
        return Runtime(side.name, side.kind, changed, side.role).vectors(texts)
    except EmbedLMError:
        return None


_SAYS = {
    "tokens": "the tokens differ",
    "pooling": "the tokens are the same; pooling or attention differs",
    "length": "the directions are the same, the lengths differ: one side normalises",
    "numbers": "no change explains it: other weights, another layer, or another precision",
}


def _verdict(rows: Sequence[TextComparison]) -> str:
    apart = [row.parts for row in rows if row.parts != "equal"]
    if not apart:
        return f"equal on all {len(rows)} texts"
    counts = {kind: apart.count(kind) for kind in _SAYS if kind in apart}
    reasons = "; ".join(f"{_SAYS[kind]} ({count})" for kind, count in counts.items())
    return f"they differ on {len(apart)} of {len(rows)} texts: {reasons}"
