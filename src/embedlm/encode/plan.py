"""Which rendered texts run together, and what they share.

Under a causal mask ids that rows begin with alike are run once: rows are grouped by the prefixes
that a trie of them finds, where that saves more than a further pack costs. Such a prefix may begin
with a shorter one that more rows share. Within a group rows are sorted by length, so that rows of
one length stand together, and filled into packs up to a token budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "DEPTH",
    "PACK_COST",
    "PACK_COST_CUDA",
    "Level",
    "Pack",
    "base_of",
    "common_prefix",
    "grouped",
    "plan",
    "plan_after",
]

MIN_SHARED = 4
"""A shorter common prefix is not worth sharing."""
PACK_COST = 256
"""Tokens that must be saved for each further group: a small pack runs at a lower rate."""
PACK_COST_CUDA = 4096
"""The same where launching a pack's kernels takes some milliseconds; an estimate."""
DEPTH = 4
"""How many prefixes that begin with one another are kept at once: each takes memory."""


class Level(NamedTuple):
    """A prefix that rows share."""

    number: int
    """Tells it from other prefixes of a plan."""
    length: int


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows that run as one."""

    items: npt.NDArray[np.int64]
    """Which of the planned rows, shortest first."""
    levels: tuple[Level, ...] = ()
    """What all of them share and is run once: prefixes that begin with one another."""

    @property
    def prefix(self) -> int:
        """How many leading ids all rows share; 0: none."""
        return self.levels[-1].length if self.levels else 0


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading ids two rows share."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))


def plan(
    rows: Sequence[list[int]],
    budget: int,
    *,
    share: bool,
    depth: int = 1,
    cost: int = PACK_COST,
) -> Iterator[Pack]:
    """Yield packs of at most `budget` tokens (a longer row is a pack of its own).

    A shared prefix leaves at least half of the budget to the rows' own tokens.

    Args:
        rows: token ids of every text of one template.
        budget: tokens run at once.
        share: whether a common prefix may be run once (packed, causal).
        depth: how many prefixes may be nested; more than one where they are kept between packs.
        cost: tokens that a further pack must save.
    """
    if not rows:
        return
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    groups = [Pack(np.arange(len(rows)))]
    if share and len(rows) > 1:
        groups = grouped(rows, depth=depth, cost=cost)
    for group in groups:
        order = group.items[np.argsort(lengths[group.items], kind="stable")]
        remaining = lengths[order] - group.prefix
        start = 0
        while start < len(order):
            end = start + _fill(remaining[start:], max(budget - group.prefix, budget // 2, 1))
            yield Pack(order[start:end], group.levels)
            start = end


class _Begun(Protocol):
    """A prefix of some rows, of which the keys and values are kept by others than this plan."""

    @property
    def members(self) -> list[int]:
        """Rows that begin with it."""
        ...

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""
        ...


def base_of(shared: _Begun) -> Level:
    """Return the level of a prefix that is kept for longer than a plan."""
    return Level(-1, len(shared.ids))


def plan_after(
    rows: Sequence[list[int]], budget: int, shared: _Begun | None, **sharing: Any
) -> Iterator[Pack]:
    """Yield the packs of `plan`, those of rows that begin with a kept prefix within it.

    Args:
        rows: see `plan`.
        budget: see `plan`.
        shared: the kept prefix; None: there is none.
        **sharing: see `plan`.
    """
    if shared is None:
        yield from plan(rows, budget, **sharing)
        return
    members = np.array(shared.members, dtype=np.int64)
    others = np.setdiff1d(np.arange(len(rows)), members)
    length = len(shared.ids)
    for pack in plan([rows[at][length:] for at in shared.members], budget, **sharing):
        inner = [Level(-2 - level.number, length + level.length) for level in pack.levels]
        yield Pack(members[pack.items], (base_of(shared), *inner))
    for pack in plan([rows[at] for at in others.tolist()], budget, **sharing):
        yield Pack(others[pack.items], pack.levels)


@dataclass(slots=True)
class _Node:
    """Rows that stand together in the trie and begin with the same `prefix` ids."""

    prefix: int
    start: int
    stop: int
    children: list[_Node]


def grouped(rows: Sequence[Sequence[int]], *, depth: int = 1, cost: int = PACK_COST) -> list[Pack]:
    """Return the groups that leave the fewest tokens to run, each after those it is nested in.

    A group costs its rows' tokens with the prefix once, and those of a pack. Rows that gain nothing
    by a group of their own stay with what all of the next larger part of the trie share. Every row
    keeps a token of its own, so that it has a state to pool.
    """
    order = sorted(range(len(rows)), key=lambda item: list(rows[item]))
    ends = [len(rows[item]) - 1 for item in order]
    shared = [
        min(common_prefix(rows[a], rows[b]), ends[index], ends[index + 1])
        for index, (a, b) in enumerate(pairwise(order))
    ]
    return [
        Pack(np.array(sorted(order[index] for index in positions), dtype=np.int64), levels)
        for levels, positions in _split(_tree(shared), depth, cost)
    ]


def _tree(shared: Sequence[int]) -> _Node:
    """Return the trie's branching nodes, from the prefix lengths that neighbours share."""
    stack = [_Node(0, 0, 0, [])]
    for index, prefix in enumerate(shared):
        last: _Node | None = None
        start = index
        while stack[-1].prefix > prefix:
            last = stack.pop()
            last.stop, start = index + 1, last.start
            if stack[-1].prefix >= prefix:
                stack[-1].children.append(last)
                last = None
        if stack[-1].prefix < prefix:
            stack.append(_Node(prefix, start, start, [last] if last is not None else []))
    while len(stack) > 1:
        last = stack.pop()
        last.stop = len(shared) + 1
        stack[-1].children.append(last)
    stack[0].stop = len(shared) + 1
    root = stack[0]
    whole = len(root.children) == 1 and root.children[0].stop - root.children[0].start == root.stop
    return root.children[0] if whole else root


def _split(root: _Node, depth: int, cost: int) -> Iterator[tuple[tuple[Level, ...], set[int]]]:
    """Yield the groups of a trie's rows: those worth one of their own, after what they lie in.

    A group that leaves a node saves its rows what lies between the two prefixes, and runs its own
    from the end of the level that it is nested in.
    """
    numbers = count()
    waiting: list[tuple[_Node, tuple[Level, ...]]] = [(root, ())]
    while waiting:
        node, above = waiting.pop()
        inner = len(above) + 1 < depth
        base = node.prefix if inner else above[-1].length if above else 0
        apart = _worth_it(node, base, cost)
        rest = set(range(node.start, node.stop))
        rest -= {index for child in apart for index in range(child.start, child.stop)}
        levels = above
        if node.prefix >= MIN_SHARED and len(rest) + len(apart) * inner > 1:
            levels = (*above, Level(next(numbers), node.prefix))
        if rest:
            yield levels, rest
        waiting += [(child, levels if inner else above) for child in apart]


def _worth_it(node: _Node, base: int, cost: int) -> list[_Node]:
    """Return the topmost nodes below one that save more than a further pack costs."""
    worthy: list[_Node] = []
    waiting = list(node.children)
    while waiting:
        child = waiting.pop()
        rows = child.stop - child.start
        if rows * (child.prefix - node.prefix) - (child.prefix - base) > cost:
            worthy.append(child)
        else:
            waiting += child.children
    return worthy


def _fill(lengths: npt.NDArray[np.int64], budget: int) -> int:
    """Return how many rows the next pack takes.

    As many packs as are needed share what is left about equally: a small last pack would run at a
    fraction of the rate of a full one.
    """
    ends = np.cumsum(lengths)
    packs = -(-int(ends[-1]) // budget)
    fits = int(np.searchsorted(ends, budget, side="right"))
    even = int(np.searchsorted(ends, ends[-1] / packs)) + 1
    return max(1, min(fits, even))
