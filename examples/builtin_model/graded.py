"""Scored pairs that stand beside the stream's texts in a batch: STS-B's training split.

The objective is CoSENT: of two pairs, the one with the higher gold score shall have the higher
cosine.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import torch
from student import Student, Tokens
from torch import Tensor

from embedlm.losses import cosent

__all__ = ["Pairs"]


class Pairs:
    """The pairs of a file, in an order of their own for each round."""

    def __init__(self, path: Path, size: int) -> None:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        self.rows = [(row["s1"], row["s2"], float(row["score"])) for row in rows]
        self.size = size
        self._order: tuple[int, list[int]] = (-1, [])

    def take(self, step: int) -> list[tuple[str, str, float]]:
        """Return the pairs of a step; the same ones whenever it is asked."""
        steps = len(self.rows) // self.size
        if self._order[0] != (turn := step // steps):
            order = list(range(len(self.rows)))
            random.Random(turn).shuffle(order)
            self._order = (turn, order)
        start = step % steps * self.size
        return [self.rows[i] for i in self._order[1][start : start + self.size]]

    def loss(self, student: Student, tokens: Tokens, step: int) -> Tensor:
        """Return the loss of a step's pairs."""
        pairs = self.take(step)
        ids = tokens([text for pair in pairs for text in pair[:2]])
        v_NE = student(torch.tensor([i for row in ids for i in row]), [len(row) for row in ids])
        return cosent(v_NE[::2], v_NE[1::2], torch.tensor([gold for *_, gold in pairs]))
