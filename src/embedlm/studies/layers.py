"""Which layer to read: each is scored on a dev set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedlm.errors import InputError
from embedlm.evaluation.metrics import spearman

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["ScoredLayer", "search_layers"]


@dataclass(frozen=True, slots=True)
class ScoredLayer:
    """A layer (-1 is the last) and its Spearman correlation on the dev set."""

    layer: int
    score: float


def search_layers(
    model: Embedder,
    dev: Sequence[tuple[str, str, float]],
    layers: Sequence[int] | None = None,
) -> list[ScoredLayer]:
    """Return the layers with their scores, best first.

    Prompts such as MetaEOL's (arXiv 2402.18458) are often better read below the last layer. The
    layers above the one that is read are not run.

    Args:
        model: an embedder; its recipe is left as it is.
        dev: pairs of sentences with their gold similarity.
        layers: indices into the hidden states; None takes the upper half of the model.

    Raises:
        InputError: fewer than two pairs, or a layer the model does not have.
    """
    if len(dev) < 2:
        raise InputError(f"the dev set has {len(dev)} pairs; give at least 2")
    count = len(model.backbone.layers)
    tried = list(layers) if layers is not None else list(range(-1, -count // 2 - 1, -1))
    texts = [text for first, second, _ in dev for text in (first, second)]
    gold = [score for *_, score in dev]
    found = []
    for layer in tried:
        recipe = model.recipe.override({"pooling.layer": layer})
        embedder = model.with_recipe(recipe)
        vectors = embedder.encode(texts, heads=["dense"])
        scores = embedder.similarity_pairwise(vectors[::2], vectors[1::2])
        found.append(ScoredLayer(layer, spearman(scores, gold)))
    return sorted(found, key=lambda entry: (-entry.score, -entry.layer))
