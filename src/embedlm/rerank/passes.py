"""Passes of a network that scores pairs, so that a score depends on nothing but its own pair.

As for vectors (see `embedlm.backbone.company`): pairs are run alone at load, and together, and
compared; those that others move run apart.

Shapes: B pairs, L longest of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone.company import Company, group_keys
from embedlm.backbone.positions import LengthRope, find_length_rope, original_frequencies
from embedlm.errors import UnsupportedError
from embedlm.rerank.pairs import Rows, batches

__all__ = ["PROBE", "Passes"]

BUDGET = 4096
"""Tokens that run at once, padding included."""
PROBE = (("a", "b c d e f g h i"), ("a", "b c"), ("a", "d e"), ("a", "b"))
"""Pairs that are run at load: two of one length, a longer and a shorter one."""
_FAILURES = (RuntimeError, NotImplementedError, TypeError, ValueError, LookupError)


@dataclass(slots=True)
class Passes:
    """Runs rows of token ids through a sequence classification network."""

    network: Any
    tokenizer: Any
    company: Company = "any"
    """Which rows a pass may hold."""

    def measure(self, rows: Rows) -> None:
        """Find which rows a pass may hold without changing the scores that they have alone.

        Raises:
            UnsupportedError: the network cannot be run on pairs.
        """
        self.company = "none"
        try:
            alone_B = self.logits(rows)
        except _FAILURES as error:
            raise UnsupportedError(
                f"{type(self.network).__name__} cannot be run on pairs with this tokenizer "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); take a model "
                "that was trained to score pairs"
            ) from error
        ways: tuple[Company, ...] = ("any", "equal lengths", "none")
        for way in ways:
            self.company = way
            if self._gives(rows, alone_B):
                return

    def _gives(self, rows: Rows, alone_B: npt.NDArray[np.float32]) -> bool:
        try:
            found_B = self.logits(rows)
        except _FAILURES:
            return False
        dtype = next(self.network.parameters()).dtype
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        size = np.linalg.norm(alone_B).clip(1e-9)
        # What overflows is told when a pair is scored, by its text.
        return not np.linalg.norm(found_B - alone_B) > tolerance * size

    def logits(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Return the network's one output for each row."""
        ids = rows["input_ids"]
        scores_B = np.empty(len(ids), np.float32)
        rope = find_length_rope(self.network)
        for items in self._batches(ids, rope):
            inputs = self.tokenizer.pad(
                {name: [values[i] for i in items] for name, values in rows.items()},
                padding_side="right",
                return_tensors="pt",
            )
            with original_frequencies(self.network) if rope else nullcontext():
                scores_B[items] = self._pass(inputs)
        return scores_B

    @torch.inference_mode()
    def _pass(self, inputs: Any) -> npt.NDArray[np.float32]:
        device = next(self.network.parameters()).device
        logits_B = self.network(**inputs.to(device)).logits[:, 0]
        scores_B: npt.NDArray[np.float32] = logits_B.float().cpu().numpy()
        return scores_B

    def _batches(
        self, ids: list[list[int]], rope: LengthRope | None
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the indices of rows that run together."""
        groups: dict[Hashable, list[int]] = {}
        for index, key in enumerate(group_keys(ids, None, self.company, rope)):
            groups.setdefault((key, self._marks(ids[index])), []).append(index)
        for members in groups.values():
            indices = np.array(members)
            lengths = np.array([len(ids[index]) for index in members])
            yield from (indices[items] for items in batches(lengths, BUDGET))

    def _marks(self, ids: list[int]) -> int:
        """Return how many EOS a row has, for networks that read the last of as many (BART, T5)."""
        if not self.network.config.is_encoder_decoder:
            return 0
        return ids.count(self.network.config.eos_token_id)
