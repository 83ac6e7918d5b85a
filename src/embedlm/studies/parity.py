"""Where two models part for each text: in tokens, in pooling, or in numbers.

Shapes: n texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedlm.errors import EmbedLMError, InputError
from embedlm.readout.similarity import cosine
from embedlm.schema.recipe import POOLINGS
from embedlm.studies.runtimes import Runtime, Vectors

__all__ = ["Comparison", "Row", "compare"]

EQUAL = 1e-4
"""1 - cosine up to which two vectors are taken for equal."""
_SHOWN = 4
"""Tokens shown on each side of the first that differs."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text's outcome."""

    text: str
    parts: str
    """equal, tokens, pooling, length (of the vectors), width or numbers."""
    cosine: float | None
    largest: float | None
    """Largest absolute difference."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All texts' outcomes and what they say together."""

    rows: list[Row]
    verdict: str

    @property
    def equal(self) -> bool:
        """Whether no text parts them."""
        return all(row.parts == "equal" for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        rows = [asdict(row) for row in self.rows]
        return {"equal": self.equal, "verdict": self.verdict, "rows": rows}


def compare(
    a: Runtime, b: Runtime, texts: Sequence[str], *, tolerance: float = EQUAL
) -> Comparison:
    """Compare two runtimes on the same texts.

    Token ids are compared where both sides tell theirs. Vectors that differ although the tokens are
    the same are compared with what EmbedLM's side would give under another pooling or the other
    direction of attention: if one of these matches, that is where they part.

    Args:
        a: one side.
        b: the other.
        texts: at least one.
        tolerance: 1 - cosine up to which vectors are equal.

    Raises:
        InputError: no texts.
    """
    if not texts:
        raise InputError("there are no texts to compare; give at least one")
    a_nD, b_nD = a.vectors(texts), b.vectors(texts)
    tokens = _tokens(a, b, texts)
    if a_nD.shape[1] != b_nD.shape[1]:
        what = f"vectors of width {a_nD.shape[1]} and {b_nD.shape[1]}"
        rows = [Row(text, "width", None, None, what) for text in texts]
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
        rows.append(Row(text, parts, float(cosines[i]), float(largest[i]), detail))
    return Comparison(rows, _verdict(rows))


def _tokens(a: Runtime, b: Runtime, texts: Sequence[str]) -> list[str]:
    """Return for each text how its tokens differ; empty where they do not, or nobody tells."""
    left, right = a.ids(texts), b.ids(texts)
    if left is None or right is None:
        return [""] * len(texts)
    return [_first_difference(a, b, x, y) for x, y in zip(left, right, strict=True)]


def _first_difference(a: Runtime, b: Runtime, x: list[int], y: list[int]) -> str:
    if x == y:
        return ""
    pairs = zip(x, y, strict=False)
    place = next((i for i, (one, two) in enumerate(pairs) if one != two), min(len(x), len(y)))
    span = slice(max(0, place - _SHOWN), place + _SHOWN)
    one, two = x[place : place + 1], y[place : place + 1]
    return (
        f"token {place} of {len(x)} and {len(y)}: {one} and {two}, "
        f"{a.spell(x[span])!r} and {b.spell(y[span])!r}"
    )


def _other_way(
    a: Runtime, b: Runtime, texts: Sequence[str], a_nD: Vectors, b_nD: Vectors, tolerance: float
) -> str | None:
    """Return what EmbedLM's side would have to do to give the other's vectors."""
    for own, wanted_nD in ((a, b_nD), (b, a_nD)):
        if own.kind != "embedlm":
            continue
        recipe = own.model.recipe
        changes: list[dict[str, Any]] = [
            {"pooling.kind": kind, "pooling.over": over}
            for over in (recipe.pooling.over, "all", ("text",))
            for kind in POOLINGS
        ]
        turned = "bidirectional" if own.model.backbone.causal else "causal"
        changes += [{"backbone.attention": turned}]
        for change in changes:
            found_nD = _under(own, change, texts)
            if found_nD is None or found_nD.shape != wanted_nD.shape:
                continue
            if (1 - cosine(found_nD, wanted_nD, pairwise=True) <= tolerance).all():
                said = ", ".join(f"{key}: {value}" for key, value in change.items())
                return f"the other side does as {own.name} would with {said}"
    return None


def _under(own: Runtime, change: dict[str, Any], texts: Sequence[str]) -> Vectors | None:
    """Return EmbedLM's vectors under a changed recipe; None where the model cannot do it."""
    from embedlm.loader import load

    model = own.model
    try:
        recipe = model.recipe.override(change)
        if "backbone.attention" in change:
            changed = load(model.backbone.name, recipe, dtype=model.backbone.dtype)
        else:
            changed = model.with_recipe(recipe)
        return Runtime(own.name, own.kind, changed, own.role).vectors(texts)
    except EmbedLMError:
        return None


_SAYS = {
    "tokens": "the tokens differ",
    "pooling": "the tokens are the same, and the states are pooled (or attended to) otherwise",
    "length": "the directions are the same, and the lengths are not: one side normalises",
    "numbers": "no part explains it: other weights, another layer, or another precision",
}


def _verdict(rows: Sequence[Row]) -> str:
    apart = [row.parts for row in rows if row.parts != "equal"]
    if not apart:
        return f"equal on all {len(rows)} texts"
    counts = {kind: apart.count(kind) for kind in _SAYS if kind in apart}
    said = "; ".join(f"{_SAYS[kind]} ({count})" for kind, count in counts.items())
    return f"they part on {len(apart)} of {len(rows)} texts: {said}"
