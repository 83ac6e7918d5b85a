"""Another model's embeddings of the texts that are trained on: a teacher's, or a guide's."""

from __future__ import annotations

import torch
from torch import Tensor

from embedlm.embedder import Embedder
from embedlm.training.student import Ask

__all__ = ["Guide"]

KEPT = 200_000
"""Texts whose vectors are kept."""


class Guide:
    """Embeds without gradients and remembers what it has embedded."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._known: dict[tuple[str, str | None], Tensor] = {}

    def embed(self, ask: Ask) -> Tensor:
        """Return the texts' vectors, v_ND in float32 on the CPU; instructions are its own."""
        keys = [(text, ask.role) for text in ask.texts]
        new = list(dict.fromkeys(key for key in keys if key not in self._known))
        if new:
            vectors = self.embedder.encode(
                [text for text, _ in new], role=ask.role, heads=["dense"], show_progress=False
            )
            if len(self._known) + len(new) > KEPT:
                self._known = {key: self._known[key] for key in keys if key in self._known}
            self._known.update(zip(new, torch.from_numpy(vectors), strict=True))
        return torch.stack([self._known[key] for key in keys])
