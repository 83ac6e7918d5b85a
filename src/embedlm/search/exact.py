"""Exact search in memory: every query is compared with every passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, closest
from embedlm.readout.similarity import hybrid_runs
from embedlm.search.passages import Passage

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["MODES", "ExactIndex", "Hit"]

MODES: dict[str, tuple[str, ...]] = {
    "dense": ("dense",),
    "sparse": ("sparse",),
    "hybrid": ("dense", "sparse"),
    "late-interaction": ("multi_vector",),
}
"""The heads that each mode compares; several are fused as PromptReps does (arXiv 2404.18424)."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found."""

    passage: Passage
    score: float
    rank: int
    """From 1."""


class ExactIndex:
    """Passages and their embeddings."""

    def __init__(
        self,
        model: Embedder,
        passages: Sequence[Passage],
        mode: str = "dense",
        *,
        show_progress: bool | None = None,
    ) -> None:
        if mode not in MODES:
            raise InputError(
                f"search mode {mode!r} is not known; allowed: {', '.join(MODES)}."
                + closest(mode, list(MODES))
            )
        self.model = model
        self.passages = list(passages)
        self.heads = list(MODES[mode])
        texts = [passage.text for passage in self.passages]
        self.embeddings: Any = model.encode_document(
            texts, heads=self.heads, show_progress=show_progress
        )

    def search(self, query: str, top_k: int = 10, *, instruction: str | None = None) -> list[Hit]:
        """Return the best passages for a query, best first; equal scores in the files' order.

        Args:
            query: what is looked for.
            top_k: how many hits at most.
            instruction: fills the query's prompt; None takes the recipe's.

        Raises:
            InputError: an empty query, or top_k below 1.
        """
        if not query.strip():
            raise InputError("the query is empty; say what to look for")
        if top_k < 1:
            raise InputError(f"top_k is {top_k}; give a number above 0")
        asked = self.model.encode_query([query], heads=self.heads, instruction=instruction)
        runs = [self.model.similarity(asked, self.embeddings, [head])[0] for head in self.heads]
        scores = runs[0] if len(runs) == 1 else _fused(runs)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [
            Hit(self.passages[place], float(scores[place]), rank)
            for rank, place in enumerate(best.tolist(), 1)
        ]


def _fused(runs: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    count = len(runs[0])
    named = [{str(place): float(run[place]) for place in range(count)} for run in runs]
    fused = hybrid_runs(named)
    return np.array([fused.get(str(place), 0.0) for place in range(count)])
