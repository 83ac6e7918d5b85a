"""The token states of a pack, and which of them a pooling or head reads.

Shapes: T tokens of a pack, R tokens of its texts one after another (a shared prefix counts for each
text), N picked tokens, B texts, D width of a state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone.memory import put
from embedlm.prompt.segments import SEGMENT_ID, Segments
from embedlm.readout.pooling import Tokens

__all__ = ["PackStates", "Picked", "TemplateStates"]

_SPECIAL = SEGMENT_ID["special"]
Over = str | tuple[str, ...]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Picked:
    """The tokens of a pack that lie in some segments."""

    rows: Sequence[Sequence[int]]
    """Token ids of each text."""
    index_N: Ids
    """Of R."""
    count_B: Ids
    start_B: Ids
    """Where each text starts in R."""
    nothing_B: npt.NDArray[np.bool_] | None = None
    """Whether a text has none, so that its last token is picked; None: each has some."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], segments: Sequence[Segments], over: Over) -> Picked:
        """Pick the tokens of the segments `over`.

        A text that has none of them (an empty one, say) gives its last token: a defined vector
        where the references give NaN.
        """
        length_B = np.fromiter(map(len, rows), np.int64, len(rows))
        start_B = np.cumsum(length_B) - length_B
        if over == "all":
            return cls(rows, np.arange(length_B.sum()), length_B, start_B)
        chosen = np.zeros(len(SEGMENT_ID), dtype=bool)
        chosen[[SEGMENT_ID[name] for name in over]] = True
        mask_R = chosen[np.concatenate(list(segments))]
        count_B = np.add.reduceat(mask_R, start_B, dtype=np.int64)
        mask_R[(start_B + length_B - 1)[count_B == 0]] = True
        return cls(rows, np.flatnonzero(mask_R), np.maximum(count_B, 1), start_B, count_B == 0)

    def ids(self) -> Ids:
        """Return the picked tokens' ids, ids_N."""
        return np.fromiter(chain.from_iterable(self.rows), np.int64)[self.index_N]

    def first_N(self) -> npt.NDArray[np.bool_]:
        """Tell for each picked token whether it is the first of its row."""
        return np.asarray(self.index_N == np.repeat(self.start_B, self.count_B))

    def ids_by_text(self) -> list[Ids]:
        """Return the picked tokens' ids, an array a text."""
        return np.split(self.ids(), np.cumsum(self.count_B)[:-1])

    def tokens(
        self,
        prefix: int,
        device: torch.device,
        weight_V: npt.NDArray[np.float32] | None = None,
        *,
        weighted_total: bool = False,
        places: bool = False,
    ) -> Tokens:
        """Return where the picked tokens' states stand in h_TD.

        Args:
            prefix: tokens that all texts share and that stand in h_TD once.
            device: of the states.
            weight_V: a weight for each id of the vocabulary.
            weighted_total: divide a weighted sum by its weights, not by the number of tokens.
            places: also return the place of each token in its row.
        """
        text_N = np.repeat(np.arange(len(self.count_B)), self.count_B)
        index_N = self.index_N
        position_N = index_N - self.start_B[text_N] if prefix or places else index_N
        if prefix:
            index_N = np.where(position_N < prefix, position_N, index_N - prefix * text_N)
        weight_N = None
        if weight_V is not None:
            weight_N = put(torch.from_numpy(weight_V[self.ids()]), device)
        index, text, start, count = (
            put(torch.from_numpy(x), device)
            for x in (index_N, text_N, np.cumsum(self.count_B) - self.count_B, self.count_B)
        )
        whole = not prefix and int(index_N[-1]) + 1 == len(index_N)
        place_N = put(torch.from_numpy(position_N), device) if places else None
        return Tokens(index, text, start, count, weight_N, weighted_total, whole, place_N)


@dataclass(slots=True)
class PackStates:
    """The token states of a pack: all that a readout looks at."""

    h_TD: Tensor
    """States of the shared prefix, then of each text's own tokens."""
    rows: Sequence[Sequence[int]]
    """Token ids of each text, the prefix included."""
    segments: Sequence[Segments]
    """The segment of each of these tokens; not read where all tokens are pooled."""
    prefix: int = 0
    role: str | None = None
    words: Sequence[Ids | None] | None = None
    """Vocabulary ids of each text's own words, for heads that are restricted to them."""
    template: TemplateStates | None = None
    """States of the prompts without their texts, for a pooling that takes these out."""
    _picked: dict[Over, Picked] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def picked(self, over: Over) -> Picked:
        """Return the tokens of the segments `over`; they are picked once."""
        if over not in self._picked:
            self._picked[over] = Picked.of(self.rows, self.segments, over)
        return self._picked[over]

    def nothing_B(self, over: Over) -> npt.NDArray[np.bool_]:
        """Tell for each text whether it has no token in the segments `over`.

        An empty prompt has one, a special token that stands for nothing.
        """
        found_B = self.picked(over).nothing_B
        if found_B is not None:
            return found_B
        rows = zip(self.rows, self.segments, strict=True) if self.segments else ()
        found = [len(row) == 1 and list(marks) == [_SPECIAL] for row, marks in rows]
        return np.array(found or [False] * len(self), dtype=bool)

    def tokens(
        self,
        over: Over,
        weight_V: npt.NDArray[np.float32] | None = None,
        *,
        weighted_total: bool = False,
        places: bool = False,
    ) -> Tokens:
        """Return where the states of the segments `over` stand in h_TD."""
        return self.picked(over).tokens(
            self.prefix, self.h_TD.device, weight_V, weighted_total=weighted_total, places=places
        )


@dataclass(frozen=True, slots=True)
class TemplateStates:
    """The states of a pack's prompts without their texts; equal prompts are run once."""

    states: PackStates
    prompt_B: Tensor
    """Which of the prompts each text has."""
