"""Dense vectors by many readouts, of other layers or poolings, from one pass of their network.

Shapes: T tokens of a pack, D width of a state, S states that stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from embedlm.backbone import Backbone
from embedlm.backbone.layers import layer_index
from embedlm.errors import UnsupportedError
from embedlm.readout import sinks
from embedlm.readout.head import Collector
from embedlm.readout.readout import Readout
from embedlm.readout.states import PackStates, TemplateStates

__all__ = ["EachLayer", "norms_of_layers"]


class EachLayer(Readout):
    """Reads what each of several readouts reads; its heads are theirs, one after another.

    The readouts have one network, one prompt and the same `pooling.over`, and differ in layers and
    kinds of pooling.
    """

    apart: ClassVar[bool] = True

    def __init__(self, readouts: Sequence[Readout]) -> None:
        """Join readouts; each was checked when it was made.

        Raises:
            UnsupportedError: the network has no list of layers.
        """
        first = readouts[0]
        self.count = _layers_of(first.backbone)
        self.readouts = tuple(readouts)
        self.backbone, self.recipe, self.parts = first.backbone, first.recipe, first.parts
        self.statistics, self.norms = first.statistics, first.norms
        self.trained, self.pooling = first.trained, first.pooling
        self.heads = tuple(head for readout in readouts for head in readout.heads)
        self.tells_of_sink = False
        for readout in readouts:
            readout.tells_of_sink = False  # some of them read a sink on purpose: to compare
        self.places = {index: place for place, index in enumerate(self.layers)}

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers that a readout reads, counted from 0."""
        indices = {i for readout in self.readouts for i in self._indices(readout)}
        return tuple(sorted(indices))

    def _indices(self, readout: Readout) -> list[int]:
        return [layer_index(layer, self.count) for layer in readout.layers]

    def read(self, states: PackStates) -> list[Any]:
        """Return the output of every head of every readout for a pack's texts."""
        outputs: list[Any] = []
        before: tuple[list[int], PackStates] | None = None
        for readout in self.readouts:
            indices = self._indices(readout)
            if before is None or before[0] != indices:
                before = indices, self._states(states, indices)
            outputs += readout.read(before[1])
        return outputs

    def collectors(self, count: int) -> list[Collector]:
        """Return an empty collector for each head of every readout."""
        return [one for readout in self.readouts for one in readout.collectors(count)]

    def _states(self, states: PackStates, indices: list[int]) -> PackStates:
        """Return the states that a readout of some layers would be given."""
        template = states.template
        if template is not None:
            own = self._states(template.states, indices)
            template = TemplateStates(own, template.prompt_B)
        return replace(states, h_TD=self._mean(states.h_TD, indices), template=template)

    def _mean(self, h_TS: Tensor, indices: list[int]) -> Tensor:
        width = self.backbone.dim
        if h_TS.shape[1] != width * len(self.places):
            raise UnsupportedError(
                f"the states of some layers of {self.backbone.name!r} are not {width} numbers wide "
                "as its last ones are, so they cannot be read from one pass"
            )
        parts = [h_TS[:, self.places[i] * width :][:, :width] for i in indices]
        return torch.stack(parts).mean(0)


def _layers_of(backbone: Backbone) -> int:
    if backbone.static or not backbone.layer_count:
        raise UnsupportedError(
            f"{backbone.name!r} runs no layers that could be compared; take a recipe whose "
            "backbone.kind is transformer, and a model whose config says num_hidden_layers"
        )
    return backbone.layer_count


def norms_of_layers(backbone: Backbone) -> dict[sinks.Layers, sinks.StateNorms]:
    """Return how long the states of each layer are, by one pass; layers are counted from 0.

    Raises:
        UnsupportedError: the network has no list of layers.
    """
    layers = tuple(range(_layers_of(backbone) + 1))
    with torch.no_grad():
        h_TS = backbone.run(sinks.probe(backbone), layers=layers, apart=True)
    parts = h_TS.split(h_TS.shape[1] // len(layers), dim=1)
    return {(layer,): sinks.StateNorms.of(part) for layer, part in zip(layers, parts, strict=False)}
