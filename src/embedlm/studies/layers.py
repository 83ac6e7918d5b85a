"""Chooses the layer to read: scores each on a dev set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedlm.errors import InputError
from embedlm.evaluation.measures import spearman
from embedlm.studies.layer_scores import readings_of
from embedlm.studies.one_pass import Sweep

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

    Prompts such as MetaEOL's (arXiv 2402.18458) often give better vectors below the last layer.
    Each text is run once for all layers.

    Args:
        model: the embedder; it is not changed.
        dev: pairs of sentences with their gold similarity.
        layers: indices into the hidden states, -1 the last; None takes the upper half.

    Raises:
        InputError: fewer than two pairs, or a layer the model does not have.
        UnsupportedError: a model without layers, or a recipe that weighs tokens by their frequency.
    """
    if len(dev) < 2:
        raise InputError(f"the dev set holds {len(dev) or 'no'} pair; give at least 2")
    count = len(model.backbone.layers)
    tried = list(layers) if layers is not None else list(range(-1, -count // 2 - 1, -1))
    texts = [text for first, second, _ in dev for text in (first, second)]
    gold = [score for *_, score in dev]
    sweep = Sweep([one.embedder for one in readings_of(model, tried, ["recipe"])])
    scored = []
    for number, layer in enumerate(tried):
        vectors = sweep.vectors(number, texts)
        embedder = sweep.embedders[number]
        scores = embedder.similarity_pairwise(vectors[::2], vectors[1::2])
        scored.append(ScoredLayer(layer, spearman(scores, gold)))
    return sorted(scored, key=lambda entry: (-entry.score, -entry.layer))
