"""Where the sequences of a packed row lie, and what is kept of the prefix that rows share.

Attention reads both from here while a row is run, each thread its own.

Shapes: K key-value heads, T tokens of the row, P tokens of the prefix, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Kept", "Layout", "current", "current_kept", "layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the sequences of a packed row lie."""

    lengths: tuple[int, ...]
    """Own tokens of each sequence, in row order; equal lengths stand together."""
    causal: bool
    prefix: int = 0
    """Tokens of the shared prefix, which stand before all sequences."""
    held: bool = False
    """The prefix's keys and values are kept from an earlier row, and its tokens not in this one."""

    @property
    def absent(self) -> int:
        """How many of the leading tokens are not in the row."""
        return self.prefix if self.held else 0

    def groups(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first token, sequences, length) of each run of equal lengths.

        Tokens are counted from the prefix's first, in the row or not.
        """
        start, index = self.prefix, 0
        while index < len(self.lengths):
            length = self.lengths[index]
            end = index
            while end < len(self.lengths) and self.lengths[end] == length:
                end += 1
            yield start, end - index, length
            start += (end - index) * length
            index = end


class Kept:
    """What packs keep of the prefix they share: it is run with the first of them only."""

    def __init__(self, length: int, above: Kept | None = None) -> None:
        """Keep the first `length` tokens of what is run first, after what is kept above them."""
        self.length = length
        self._above = above
        self._states: Tensor | None = None
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._turn = 0

    @property
    def states(self) -> Tensor | None:
        """The states of what need not be run again, h_PD."""
        if self._states is None and self._above is not None:
            return self._above.states
        return self._states

    def keep(self, h_TD: Tensor) -> None:
        """Keep the states of the prefix, which was run."""
        if self._states is None:
            self._states = h_TD[: self.length].clone()

    @property
    def bytes(self) -> int:
        """Memory that it takes, without what is kept above it."""
        held = [tensor for pair in self._layers for tensor in pair]
        held += [] if self._states is None else [self._states]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def first(self, length: int) -> Kept:
        """Return what is kept of the first `length` tokens, in the same memory, for one call."""
        found = Kept(length)
        found._states = None if self._states is None else self._states[:length]
        one = slice(0, length)
        found._layers = [(key[:, :, one], value[:, :, one]) for key, value in self._layers]
        return found

    def begin(self) -> None:
        """Start a pass through the layers."""
        self._turn = 0
        if self._states is None:
            self._layers.clear()
            if self._above is not None:
                self._above.begin()

    def join(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next layer's keys and values with the prefix's before them."""
        if self._states is None:
            if self._above is not None:
                key, value = self._above.join(key, value)
            one = slice(0, self.length)
            self._layers.append((key[:, :, one].clone(), value[:, :, one].clone()))
            return key, value
        before = self._layers[self._turn]
        self._turn += 1
        return _joined(before[0], key), _joined(before[1], value)


def _joined(before_1KPD: Tensor, x_1KTD: Tensor) -> Tensor:
    """Return both, in memory token by token, as projections write them."""
    return torch.cat([before_1KPD.transpose(1, 2), x_1KTD.transpose(1, 2)], dim=1).transpose(1, 2)


class _Current(threading.local):
    layout: Layout | None = None
    kept: Kept | None = None


_current = _Current()


@contextmanager
def layout(value: Layout, kept: Kept | None = None) -> Iterator[None]:
    """Set the layout of the row that this thread runs inside, and what is kept of its prefix."""
    before = _current.layout, _current.kept
    _current.layout, _current.kept = value, kept
    if kept is not None:
        kept.begin()
    try:
        yield
    finally:
        _current.layout, _current.kept = before


def current() -> Layout | None:
    """Return the layout of the row that this thread is running; None between rows."""
    return _current.layout


def current_kept() -> Kept | None:
    """Return what is kept of the prefix of the row that is being run."""
    return _current.kept
