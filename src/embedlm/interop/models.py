"""What the bridges take as a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import embedlm

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["embedder_of"]


def embedder_of(model: Any, recipe: Any = None) -> Embedder:
    """Return an embedder, or load one.

    Args:
        model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
        recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.
    """
    embedder: Embedder
    if not isinstance(model, embedlm.Embedder):
        embedder = embedlm.load(model, recipe)
    else:
        embedder = model if recipe is None else model.with_recipe(recipe)
    return embedder
