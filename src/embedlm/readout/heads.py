"""The heads by name, and which of them a call asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from embedlm.errors import InputError, UnsupportedError
from embedlm.readout.dense import DenseHead
from embedlm.readout.head import Head
from embedlm.readout.multi_vector import MultiVectorHead
from embedlm.readout.sparse import SparseHead
from embedlm.schema.heads import Head as HeadOptions
from embedlm.schema.recipe import Recipe, parse_head

__all__ = ["HEADS", "make_heads", "requested_heads"]

HEADS: dict[str, type[Head[Any]]] = {
    "dense": DenseHead,
    "sparse": SparseHead,
    "multi_vector": MultiVectorHead,
}
"""The class of each head, by its name in recipes."""


def make_heads(options: Sequence[HeadOptions]) -> tuple[Head[Any], ...]:
    """Return the heads with these options."""
    return tuple(HEADS[each.kind](each) for each in options)


def requested_heads(
    heads: Any, recipe: Recipe, *, several: bool, trained: bool = False
) -> tuple[HeadOptions, ...]:
    """Return the options of the heads that a call names, on top of the recipe's.

    Args:
        heads: a name, `{name: options}`, or a list of these; None takes the recipe's heads.
        recipe: the model's.
        several: whether the outputs of several prompts are averaged.
        trained: whether the model has only the heads that its recipe names.

    Raises:
        InputError: no head, or one head twice.
        UnsupportedError: a head whose outputs cannot be averaged, or that was not trained.
    """
    if heads is None:
        chosen = recipe.heads
    else:
        listed = [heads] if isinstance(heads, str | Mapping) else list(heads)
        chosen = tuple(parse_head(head, recipe.heads) for head in listed)
    if not chosen:
        raise InputError(f"heads is empty; give at least one of {', '.join(HEADS)}")
    kinds = [head.kind for head in chosen]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"heads names one kind twice: {', '.join(kinds)}")
    named = [head.kind for head in recipe.heads]
    untrained = [kind for kind in kinds if kind not in named]
    if trained and untrained:
        raise UnsupportedError(
            f"this model was trained to give {', '.join(named)}, and what its head "
            f"{untrained[0]} gave would mean nothing; ask for {' or '.join(named)}, or load the "
            f"model with a recipe that defines {untrained[0]}"
        )
    apart = [kind for kind in kinds if not HEADS[kind].averages]
    if several and apart:
        averaged = ", ".join(kind for kind, head in HEADS.items() if head.averages)
        raise UnsupportedError(
            f"recipe {recipe.name!r} averages several prompts, and the outputs of the head "
            f"{apart[0]} cannot be averaged; ask for {averaged}"
        )
    return chosen
