"""The list of a network's layers, and the states that enter them.

Shapes: T tokens of a pack, B sequences, L longest of them, D width of a state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embedlm.errors import InputError, UnsupportedError

__all__ = ["Tapped", "Wanted", "find_layers", "layer_at", "layer_index", "states_before"]


def find_layers(network: nn.Module, count: int) -> nn.ModuleList:
    """Return the list of the network's layers.

    Raises:
        UnsupportedError: no list of `count` modules is in it.
    """
    for part in _text_first(network):
        for module in part.modules():
            if count and isinstance(module, nn.ModuleList) and len(module) == count:
                return module
    raise UnsupportedError(f"{type(network).__name__} has no list of {count} layers to probe")


def _text_first(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts that run by the text's config, then the whole: towers have layers too."""
    config: Any = getattr(network, "config", None)
    text = config.get_text_config() if config is not None else None
    if text is not config:
        yield from (part for part in network.modules() if getattr(part, "config", None) is text)
    yield network


def layer_at(layer: float, count: int) -> int:
    """Return the layer that a recipe names: by its index, or by its share of `count` layers."""
    return layer if isinstance(layer, int) else round(layer * count)


def layer_index(layer: int, count: int) -> int:
    """Return an index into the hidden states, counted from 0 (the embeddings) to `count`.

    Raises:
        InputError: the model has no such layer.
    """
    index = layer if layer >= 0 else count + 1 + layer
    if not 0 <= index <= count:
        raise InputError(
            f"layer {layer} is not one of this model's: allowed are 0 (embeddings) to {count} "
            f"(last), or -1 to {-count - 1}"
        )
    return index


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which hidden states a pass returns."""

    indices: tuple[int, ...]
    """Counted from 0."""
    apart: bool = False
    """Side by side in one wide state; else their mean."""

    @classmethod
    def of(cls, layers: tuple[int, ...], count: int, *, apart: bool) -> Wanted:
        """Return what a pass is asked for.

        Raises:
            InputError: the model has no such layer.
        """
        return cls(tuple(layer_index(layer, count) for layer in layers), apart)

    def joined(self, states: Mapping[int, Tensor]) -> Tensor:
        """Return the states side by side (the width is the sum of theirs), or their mean."""
        chosen = [states[index] for index in self.indices]
        return torch.cat(chosen, dim=-1) if self.apart else torch.stack(chosen).mean(0)


class _Stop(Exception):  # noqa: N818 (no error: a way out)
    """Ends a forward pass once the states that were asked for are there."""


class _Capture(threading.local):
    """What the pass that this thread is running collects."""

    def __init__(self) -> None:
        self.indices: Collection[int] = ()
        self.states: dict[int, Tensor] = {}


_capture = _Capture()


class Tapped(nn.Module):
    """Stands before a layer and keeps the states that enter it, for the thread that asks for them.

    It wraps the layer, and is no hook on it: a compiled layer would compile its hooks too.
    """

    def __init__(self, layer: nn.Module, index: int) -> None:
        super().__init__()
        self.layer = layer
        self.index = index

    def __getattr__(self, name: str) -> Any:
        """Return the layer's attribute: some architectures read their layers' attributes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer, unless no later states are asked for."""
        if self.index in _capture.indices:
            states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            _capture.states[self.index] = states
            if self.index == max(_capture.indices):
                raise _Stop
        return self.layer(*args, **kwargs)


def states_before(
    indices: Collection[int], count: int, forward: Callable[[], Tensor]
) -> dict[int, Tensor]:
    """Return the states that enter some layers of a network whose layers are all `Tapped`.

    Args:
        indices: of the layers; `count` stands for the states after the last of them.
        count: of the layers.
        forward: runs the network and returns its last states. It is ended early where the last
            states are not asked for.
    """
    before = _capture.indices, _capture.states
    _capture.indices, _capture.states = frozenset(indices), {}
    try:
        with suppress(_Stop):
            last = forward()
            _capture.states[count] = last
        return _capture.states
    finally:
        _capture.indices, _capture.states = before
