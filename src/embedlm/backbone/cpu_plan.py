"""The order of work of attention by matrix products: which queries meet which keys in one product.

Sequences of like lengths are padded to one and share products. What is planned holds for all layers
of a pass.

Shapes: T tokens of a row, H heads, K key-value heads, G = H / K, B sequences of a part, N = B * K,
R rows of queries, E keys, C queries of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone.layout import Layout

__all__ = ["Block", "Plan", "Step", "bits", "of_layout", "of_prompts", "padded_length"]

Ints: TypeAlias = npt.NDArray[np.int64]

BLOCK = 128
"""Queries of a block: what a causal mask hides of the keys after it is not computed."""
AT_ONCE = 1 << 18
"""Scores of small sequences that are held at once: one call takes all of their exponentials."""
SCRATCH = 1 << 21
"""Scores held at once, about: 4 MB, so that they stay in the cache between the passes."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries that meet their keys in one product."""

    rows: slice
    """Of the gathered queries: N times R."""
    gathered: slice
    """Of the step's gathered keys: N times E."""
    pairs: int
    """N, the pairs of sequence and key-value head."""
    first: int
    """The position of the first query in its sequence, and how many follow it there."""
    count: int
    keys: int
    """How many keys they may see, from the first."""
    shown_N1X: Tensor | None
    """Which sequences have the last keys, in bits: -1, else 0; None: all have all."""

    def seen(self, causal: bool, window: int | None) -> slice:
        """Return which keys any of the queries sees."""
        if not causal or window is None:
            return slice(0, self.keys)
        return slice(max(0, self.first - window + 1), self.keys)


@dataclass(frozen=True, slots=True)
class Step:
    """Sequences whose keys are gathered together."""

    index: Tensor
    """Rows of the keys."""
    rounds: tuple[tuple[Block, ...], ...]
    """Blocks whose scores are held at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a pack is gone through; the same for all its layers."""

    gather: Tensor
    """Rows of the queries in the order of the blocks."""
    scatter: Tensor
    """Where each row's result is found."""
    steps: tuple[Step, ...]
    scratch: int


def padded_length(length: int) -> int:
    """Return the length that a sequence is padded to for its products.

    It depends on the sequence alone, so that its sums are the same in any company. In a pack of
    unlike lengths this makes fewer products, and fewer kernels: each shape needs one of its own.
    """
    unit = 2 if length <= 16 else 4 if length <= 32 else 8
    return -(-length // unit) * unit


class _Like(NamedTuple):
    """Sequences that are padded to one length; where each begins among the rows of the tokens."""

    asking_B: Ints
    """Their queries."""
    before_B: Ints
    """Keys of earlier tokens, which all of a sequence's queries see."""
    own_B: Ints
    length_B: Ints
    size: int
    """What they are padded to."""
    before: int
    """How many earlier keys each has."""


@lru_cache(maxsize=8)
def of_layout(layout: Layout, heads: int, kinds: int, causal: bool) -> Plan:
    """Return the order of work for a packed row."""
    tokens = layout.prefix + sum(layout.lengths) - layout.absent
    return _Planner(heads, kinds, causal).plan(_in_layout(layout), tokens)


@lru_cache(maxsize=8)
def of_prompts(pads: tuple[int, ...], tokens: int, held: int, heads: int, kinds: int) -> Plan:
    """Return the order of work for rows that are padded on the left, under a causal mask.

    Args:
        pads: places without a token at the beginning of each row.
        tokens: places of a row.
        held: keys of a row from earlier passes, which stand before those of its own places.
        heads: H.
        kinds: K.
    """
    return _Planner(heads, kinds, causal=True).plan(
        _in_rows(np.array(pads), tokens, held), len(pads) * tokens
    )


class _Planner:
    """Lays out products."""

    def __init__(self, heads: int, kinds: int, causal: bool) -> None:
        self.heads, self.kinds, self.causal = heads, kinds, causal
        self._queries: list[Ints] = []
        self._real: list[npt.NDArray[np.bool_]] = []
        self._steps: list[Step] = []
        self._keys: list[Ints] = []
        self._rounds: list[list[Block]] = [[]]
        self._row = self._gathered = self._scores = self._held = self._most = 0

    def plan(self, likes: Iterable[_Like], tokens: int) -> Plan:
        """Return the order of work for sequences among so many tokens.

        A token of no sequence gets another one's result.
        """
        for like in likes:
            self._add(like)
        self._end_step()
        gather, real = np.concatenate(self._queries), np.concatenate(self._real)
        scatter = np.zeros(tokens * self.heads, np.int64)
        scatter[gather[real]] = np.flatnonzero(real)
        steps = tuple(self._steps)
        return Plan(torch.from_numpy(gather), torch.from_numpy(scatter), steps, self._most)

    def _add(self, like: _Like) -> None:
        """Lay out like sequences, as many at once as the scratch buffer takes."""
        rows = min(like.size, BLOCK if self.causal else like.size)
        each = max(1, SCRATCH // (self.heads * rows * (like.before + like.size)))
        for at in range(0, len(like.length_B), each):
            some = slice(at, at + each)
            self._part(_Like._make(x[some] if isinstance(x, np.ndarray) else x for x in like))
            if self._scores >= AT_ONCE:
                self._end_step()

    def _part(self, like: _Like) -> None:
        """Lay out sequences whose keys are gathered at once."""
        keys, count = like.before + like.size, len(like.length_B)
        for low, high, kind in _blocks(count, like.size, keys, self.heads, self.kinds, self.causal):
            asked = self._ask(like, low, high, kind)
            kinds = kind.stop - kind.start
            first = self._gathered + keys * kind.start
            seen = like.before + high if self.causal else keys
            block = Block(
                rows=slice(self._row, self._row + asked),
                gathered=slice(first, first + keys * count * kinds),
                pairs=count * kinds,
                first=like.before + low,
                count=high - low,
                keys=seen,
                shown_N1X=None if self.causal else _own_keys(like.length_B, like.size, kinds),
            )
            self._row += asked
            self._hold(block, asked * seen)
        before_BE = like.before_B[:, None] + np.arange(like.before)
        own_BE = like.own_B[:, None] + _within(like.length_B, 0, like.size)[0]
        rows_BKE = np.hstack([before_BE, own_BE])[:, None] * self.kinds
        rows_BKE = rows_BKE + np.arange(self.kinds)[:, None]
        self._keys.append(rows_BKE.ravel())
        self._gathered += rows_BKE.size

    def _ask(self, like: _Like, low: int, high: int, kind: slice) -> int:
        """Gather the queries of some places and key-value heads; return how many."""
        place_BC, real_BC = _within(like.length_B, low, high)
        token_BC = like.asking_B[:, None] + place_BC
        head_KG = np.arange(self.heads).reshape(self.kinds, -1)[kind]
        rows_BKGC = token_BC[:, None, None] * self.heads + head_KG[:, :, None]
        self._queries.append(rows_BKGC.ravel())
        self._real.append(np.broadcast_to(real_BC[:, None, None], rows_BKGC.shape).ravel())
        return rows_BKGC.size

    def _hold(self, block: Block, scores: int) -> None:
        if self._held and self._held + scores > AT_ONCE:
            self._rounds.append([])
            self._held = 0
        self._rounds[-1].append(block)
        self._held += scores
        self._scores += scores
        self._most = max(self._most, self._held)

    def _end_step(self) -> None:
        if not self._keys:
            return
        index = torch.from_numpy(np.concatenate(self._keys))
        self._steps.append(Step(index, tuple(map(tuple, self._rounds))))
        self._keys, self._rounds = [], [[]]
        self._gathered = self._scores = self._held = 0


def _within(length_B: Ints, low: int, high: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return places low to high of sequences, the first for each that is padding, and which are."""
    place_C = np.arange(low, high)
    real_BC = place_C < length_B[:, None]
    return np.where(real_BC, place_C, 0), real_BC


def _own_keys(length_B: Ints, size: int, kinds: int) -> Tensor | None:
    """Return which sequences have which of the last keys, in bits; None where all have all."""
    least = length_B.min()
    if least == size:
        return None
    own_NX = np.repeat(np.arange(least, size) < length_B[:, None], kinds, axis=0)
    return bits(torch.from_numpy(own_NX))[:, None]


def bits(mask: Tensor) -> Tensor:
    """Return a mask of which a number of 16 bits is kept (all bits are 1) or not (none is)."""
    return mask.to(torch.int16).neg_()


def _in_layout(layout: Layout) -> Iterator[_Like]:
    """Yield the prefix, and the sequences of like lengths."""
    if layout.prefix and not layout.held:
        zero_B = np.zeros(1, np.int64)
        yield _Like(zero_B, zero_B, zero_B, np.full(1, layout.prefix), layout.prefix, 0)
    for size, run in groupby(layout.groups(), key=lambda group: padded_length(group[2])):
        starts, counts, lengths = np.array(list(run)).T
        length_B = np.repeat(lengths, counts)
        number_B = np.arange(len(length_B)) - np.repeat(np.cumsum(counts) - counts, counts)
        own_B = np.repeat(starts, counts) + number_B * length_B
        asking_B, before_B = own_B - layout.absent, np.zeros_like(own_B)
        yield _Like(asking_B, before_B, own_B, length_B, size, layout.prefix)


def _in_rows(pads_B: Ints, tokens: int, held: int) -> Iterator[_Like]:
    """Yield the sequences of like lengths among rows that are padded on the left."""
    longest = np.argsort(pads_B, kind="stable")
    for size, run in groupby(longest, key=lambda row: padded_length(tokens - int(pads_B[row]))):
        row_B = np.array(list(run))
        pad_B, before_B = pads_B[row_B], row_B * (held + tokens)
        own_B = before_B + held + pad_B
        yield _Like(row_B * tokens + pad_B, before_B, own_B, tokens - pad_B, size, held)


def _blocks(
    count: int, length: int, keys: int, heads: int, kinds: int, causal: bool
) -> Iterator[tuple[int, int, slice]]:
    """Yield (first query, end, key-value heads) so that scores fit the scratch buffer."""
    block = BLOCK if causal else max(BLOCK, SCRATCH // (heads * keys))
    for low in range(0, length, block):
        high = min(low + block, length)
        if count > 1 or heads * (high - low) * keys <= SCRATCH:
            yield low, high, slice(0, kinds)
            continue
        step = max(1, SCRATCH // (heads // kinds * (high - low) * keys))
        for kind in range(0, kinds, step):
            yield low, high, slice(kind, min(kind + step, kinds))
