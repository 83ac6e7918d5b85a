"""Replacing hard negatives that have become easy (Conan-embedding).

Li et al., arXiv:2408.15710, section 3.2: a record begins with the first n of its mined negatives.
Where factor * s < s_first and s < below, s being their mean score now, the i-th replacement takes
the places (i - 1) n + 10 to i n + 10 of the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from embedlm.schema.tuning import DynamicNegatives

__all__ = ["NegativeHardness"]

SKIPPED = 10
"""Entries of the mined list that the first replacement skips."""


@dataclass(slots=True)
class _Record:
    turn: int
    """How often the negatives were replaced."""
    first: float
    """Mean score of the negatives when they were first used."""
    seen: int
    """Step of the last check; -1 if the negatives are new."""


class NegativeHardness:
    """The hard negatives that each record has at present."""

    def __init__(self, settings: DynamicNegatives) -> None:
        self.settings = settings
        self.replaced = 0
        self._records: dict[str, _Record] = {}

    def places(self, source: int, index: int, wanted: int, count: int) -> list[int]:
        """Return the indices of a record's current negatives in its list of `count`."""
        record = self._records.get(f"{source}/{index}")
        turn = 0 if record is None else record.turn
        start = 0 if turn == 0 else (turn - 1) * wanted + min(SKIPPED, max(0, count - wanted))
        return [(start + place) % count for place in range(min(wanted, count))]

    def look(self, rows: Sequence[Any], scores_BG: Tensor, step: int) -> None:
        """Record how hard the negatives of a batch are, and replace those that have become easy.

        Args:
            rows: the rows of the batch, in order.
            scores_BG: cosine of each row's query with its negatives.
            step: the step of the batch.
        """
        for row, score in zip(rows, scores_BG.mean(1).tolist(), strict=False):
            if row.index < 0:
                continue
            key = f"{row.source}/{row.index}"
            record = self._records.get(key)
            if record is None:
                self._records[key] = _Record(0, score, step)
            elif record.seen < 0:  # the first time since they were replaced
                record.first, record.seen = score, step
            elif step - record.seen >= self.settings.every:
                record.seen = step
                if self.settings.factor * score < record.first and score < self.settings.below:
                    self._records[key] = _Record(record.turn + 1, 0.0, -1)
                    self.replaced += 1

    def state(self) -> dict[str, list[float]]:
        """Return the state to store in a checkpoint."""
        return {key: [r.turn, r.first, r.seen] for key, r in self._records.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Restore the state of a checkpoint."""
        self._records = {
            key: _Record(int(turn), first, int(seen)) for key, (turn, first, seen) in state.items()
        }
