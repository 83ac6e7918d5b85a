"""Which rendered texts run together, and what they share.

Rows are sorted by length, so that rows of one length stand together, and filled into packs up to a
token budget. Under a causal mask the ids that all rows begin with are run once a pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Pack", "common_prefix", "plan"]

MIN_SHARED = 4
"""A shorter common prefix is not worth sharing."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows that run as one."""

    items: npt.NDArray[np.int64]
    """Which of the planned rows, shortest first."""
    prefix: int
    """Leading ids that all of them share and that are run once; 0: none."""


def common_prefix(rows: Sequence[list[int]]) -> int:
    """Return how many leading ids all rows share."""
    low, high = min(rows), max(rows)
    for index, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return index
    return min(len(low), len(high))


def plan(rows: Sequence[list[int]], budget: int, *, share: bool) -> Iterator[Pack]:
    """Yield packs of at most `budget` tokens (a longer row is a pack of its own).

    A shared prefix leaves at least half of the budget to the rows' own tokens.

    Args:
        rows: token ids of every text of one template.
        budget: tokens run at once.
        share: whether a common prefix may be run once (packed, causal).
    """
    if not rows:
        return
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    prefix = 0
    if share and len(rows) > 1:
        # Every row keeps a token of its own, so that it has a state to pool.
        prefix = min(common_prefix(rows), int(lengths.min()) - 1)
        prefix = prefix if prefix >= MIN_SHARED else 0
    order = np.argsort(lengths, kind="stable")
    own = lengths[order] - prefix
    start = 0
    while start < len(order):
        end = start + _fill(own[start:], max(budget - prefix, budget // 2, 1))
        yield Pack(order[start:end], prefix)
        start = end


def _fill(own: npt.NDArray[np.int64], budget: int) -> int:
    """Return how many rows the next pack takes.

    As many packs as are needed share what is left about equally: a small last pack would run at a
    fraction of the rate of a full one.
    """
    ends = np.cumsum(own)
    packs = -(-int(ends[-1]) // budget)
    fits = int(np.searchsorted(ends, budget, side="right"))
    even = int(np.searchsorted(ends, ends[-1] / packs)) + 1
    return max(1, min(fits, even))
