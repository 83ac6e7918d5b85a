"""Which rows may run in one pass, so that a vector depends on nothing but its own text.

A network may read more of its batch than attention shows: rotary frequencies by the longest row,
convolutions or Fourier mixing over the padding, experts that take so many tokens of a pass. So
rows are run alone at load, and together, and compared; those that others move run apart.

Shapes: T tokens of a pack, D width of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

__all__ = ["Company", "Rows", "group_keys", "run_in_groups"]

Rows = Sequence[Sequence[int]]
Company = Literal["any", "equal lengths", "none"]
"""Which rows a padded pass may hold: any, those of one length (so that none is padded), or one."""

Run = Callable[[Rows, Sequence[int], Rows | None, Sequence[Any]], Tensor]


class ByLength(Protocol):
    """What makes rows of some lengths unlike those of others (see `LengthRope`)."""

    def group(self, length: int) -> int:
        """Return a number that is equal for lengths that may run together."""


def group_keys(
    rows: Rows, positions: Rows | None, company: Company, by_length: ByLength | None
) -> list[tuple[int, int]]:
    """Return for each row what is equal for those that may run with it."""
    reach = [1 + max(row) for row in positions] if positions else [len(row) for row in rows]
    ropes = [by_length.group(length) if by_length else 0 for length in reach]
    if company == "any":
        return [(rope, 0) for rope in ropes]
    alone = company == "none"
    return [(rope, i if alone else len(rows[i])) for i, rope in enumerate(ropes)]


def run_in_groups(
    keys: Sequence[Hashable],
    run: Run,
    rows: Rows,
    unseen: Sequence[int],
    positions: Rows | None,
    images: Sequence[Any],
) -> Tensor:
    """Run the rows of each group in a pass of its own; h_TD in the order of the rows.

    Args:
        keys: for each row what is equal within its group.
        run: runs rows together.
        rows: token ids.
        unseen: how many tokens at each row's end no token looks at.
        positions: of each row's tokens, where they are not 0, 1, 2, ...
        images: of the rows; empty: none.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    if len(groups) == 1:
        return run(rows, unseen, positions, images)
    states: dict[int, Tensor] = {}
    for members in groups.values():
        h_TD = run(
            [rows[i] for i in members],
            [unseen[i] for i in members] if unseen else (),
            [positions[i] for i in members] if positions else None,
            [images[i] for i in members] if images else (),
        )
        states.update(zip(members, h_TD.split([len(rows[i]) for i in members]), strict=True))
    return torch.cat([states[index] for index in range(len(rows))])
