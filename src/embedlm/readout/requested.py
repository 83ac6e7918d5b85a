"""Which heads a call asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedlm.errors import InputError, UnsupportedError
from embedlm.schema.recipe import Head, MultiVector, Recipe, Sparse, parse_head

__all__ = ["needs_lm_head", "wanted_heads"]


def needs_lm_head(head: Head) -> bool:
    """Tell whether a head reads the language-model head's logits."""
    return isinstance(head, Sparse) and head.weights == "lm_head"


def wanted_heads(heads: Any, recipe: Recipe, *, several: bool) -> tuple[Head, ...]:
    """Return the heads that a call names, on top of the recipe's own options.

    Args:
        heads: a name, `{name: options}`, or a list of these; None takes the recipe's.
        recipe: the model's.
        several: whether the vectors of several prompts are averaged.

    Raises:
        InputError: no head, or one twice.
        UnsupportedError: token vectors of several prompts.
    """
    if heads is None:
        wanted = recipe.heads
    else:
        given = [heads] if isinstance(heads, str | Mapping) else list(heads)
        wanted = tuple(parse_head(head, recipe.heads) for head in given)
    if not wanted:
        raise InputError("heads is empty; give at least one of dense, sparse, multi_vector")
    kinds = [head.kind for head in wanted]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"heads names one kind twice: {', '.join(kinds)}")
    if several and any(isinstance(head, MultiVector) for head in wanted):
        raise UnsupportedError(
            f"recipe {recipe.name!r} averages several prompts, which token vectors cannot be; ask "
            "for dense or sparse heads"
        )
    return wanted
