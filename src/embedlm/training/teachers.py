"""Teachers: other models that embed or score the texts that a stage trains on.

Shapes: B queries, G documents a query, N texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from embedlm.embedder import Embedder
from embedlm.rerank import Reranker
from embedlm.training.batches import BatchRow
from embedlm.training.trainable import TextRequest

__all__ = ["EmbeddingTeacher", "RerankingTeacher", "TeacherPanel"]

KEPT = 200_000
"""Number of vectors or scores that a teacher remembers."""
SCALE = 20.0
"""Factor of an embedding teacher's cosines; without it the softmax hardly tells documents apart."""


class EmbeddingTeacher:
    """A model that embeds without gradients and remembers its vectors."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._known: dict[tuple[str, str | None], Tensor] = {}

    def embed(self, request: TextRequest) -> Tensor:
        """Return the texts' vectors, v_ND in float32 on the CPU, with its own instructions."""
        keys = [(text, request.role) for text in request.texts]
        new = list(dict.fromkeys(key for key in keys if key not in self._known))
        if new:
            vectors = self.embedder.encode(
                [text for text, _ in new], role=request.role, heads=["dense"], show_progress=False
            )
            if len(self._known) + len(new) > KEPT:
                self._known = {key: self._known[key] for key in keys if key in self._known}
            self._known.update(zip(new, torch.from_numpy(vectors), strict=True))
        return torch.stack([self._known[key] for key in keys])

    def scores(self, rows: Sequence[BatchRow]) -> Tensor:
        """Return the scaled cosine of each query with its own documents, s_BG."""
        queries = tuple(row.query for row in rows)
        documents = tuple(text for row in rows for text in row.documents)
        q_BD = functional.normalize(self.embed(TextRequest(queries, "query")), dim=1)
        d_MD = functional.normalize(self.embed(TextRequest(documents, "document")), dim=1)
        return SCALE * (q_BD[:, None] * d_MD.view(len(rows), -1, d_MD.shape[1])).sum(2)


class TeacherPanel:
    """Several teachers whose scores are averaged (DiSCo)."""

    def __init__(self, teachers: Sequence[EmbeddingTeacher]) -> None:
        self.teachers = tuple(teachers)

    def scores(self, rows: Sequence[BatchRow]) -> Tensor:
        """Return the teachers' mean score of each query with its own documents, s_BG."""
        return torch.stack([teacher.scores(rows) for teacher in self.teachers]).mean(0)


class RerankingTeacher:
    """A re-ranker that scores queries with their documents and remembers the scores."""

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker
        self._known: dict[tuple[str, str], float] = {}

    def scores(self, rows: Sequence[BatchRow]) -> Tensor:
        """Return the re-ranker's logit of each query with its own documents, s_BG."""
        pairs = [(row.query, text) for row in rows for text in row.documents]
        new = list(dict.fromkeys(pair for pair in pairs if pair not in self._known))
        if new:
            scores = self.reranker.predict(new, probability=False)
            if len(self._known) + len(new) > KEPT:
                self._known = {pair: self._known[pair] for pair in pairs if pair in self._known}
            self._known.update(zip(new, (float(score) for score in scores), strict=True))
        flat = torch.tensor([self._known[pair] for pair in pairs])
        return flat.view(len(rows), -1)
