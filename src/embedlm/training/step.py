"""The gradient of one batch.

Shapes: B queries of all ranks, N texts of this rank, X columns of all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedlm.errors import InputError
from embedlm.schema.recipe import Head, parse_head
from embedlm.schema.tuning import Loss, Stage
from embedlm.training.batches import Batch, BatchRow
from embedlm.training.bottleneck import BOTTLENECK, backward_bottleneck
from embedlm.training.devices import (
    gather_rows,
    max_over_processes,
    own_rows,
    process_count,
    process_rank,
)
from embedlm.training.gradcache import backward_cached, backward_plain
from embedlm.training.language import LANGUAGE, backward_language
from embedlm.training.objectives import EMBEDDING, BatchFacts, head_of, loss_of, reads_scores
from embedlm.training.positives import equal_queries, known_positives
from embedlm.training.requests import requests_of
from embedlm.training.teachers import EmbeddingTeacher, RerankingTeacher, TeacherPanel
from embedlm.training.trainable import TextRequest, TrainableEmbedder

__all__ = ["Stepper", "length_limit", "trained_heads"]

LENGTH = 512
"""Longest text in tokens of a language-modelling objective when the stage sets no limit."""


def length_limit(stage: Stage) -> int:
    """Return the largest number of tokens that a stage reads of a text, over all roles."""
    limit = stage.max_length
    return max(limit.values()) if isinstance(limit, dict) else limit or LENGTH


def trained_heads(recipe_heads: Sequence[Head], objective: Sequence[Loss]) -> tuple[Head, ...]:
    """Return the heads that the losses read, with the options that the recipe gives them."""
    named = [head_of(loss).split("+") for loss in objective if loss.kind in EMBEDDING]
    kinds = dict.fromkeys(kind for kinds in named for kind in kinds)
    return tuple(parse_head(kind, tuple(recipe_heads)) for kind in kinds)


@dataclass(frozen=True, slots=True)
class _Context:
    """What the data and other models say of the texts of a batch; None where no loss asks."""

    labels_B: Tensor | None = None
    teacher_BG: Tensor | None = None
    guide_ND: Tensor | None = None
    positives_BM: Tensor | None = None
    equal_queries_BB: Tensor | None = None


@dataclass(slots=True)
class Stepper:
    """Computes the gradient of a batch."""

    model: TrainableEmbedder
    stage: Stage
    kind: str
    """Kind of the records: groups, pairs or texts."""
    seed: int
    precision: str = "float32"
    guide: EmbeddingTeacher | None = None
    """Another model, whose embeddings some losses compare with."""
    scorer: RerankingTeacher | TeacherPanel | None = None
    """A teacher that scores the documents of records without scores."""
    negatives_BG: Tensor | None = None
    """Cosine of each query of the last batch with its hard negatives (`dynamic_negatives`)."""

    def backward(self, batch: Batch, scale: float = 1.0) -> dict[str, float]:
        """Add a batch's gradient to the parameters.

        Args:
            batch: the batch of all processes.
            scale: factor of the gradient.

        Returns:
            The value of each loss, and under "loss" their weighted sum.
        """
        rng = np.random.default_rng([self.seed, 3, batch.step, process_rank()])
        rows = list(own_rows(batch.rows))
        values: dict[str, float] = {}
        total = 0.0
        if any(loss.kind in EMBEDDING for loss in self.stage.objective):
            embedding_loss, values = self._embedding(batch, rows, rng, scale)
            total += embedding_loss
        for loss in self.stage.objective:
            if loss.kind in LANGUAGE:
                values[loss.kind] = self._language(loss, rows, rng, scale)
                total += loss.weight * values[loss.kind]
        return {"loss": total, **values}

    def _embedding(
        self, batch: Batch, rows: Sequence[BatchRow], rng: np.random.Generator, scale: float
    ) -> tuple[float, dict[str, float]]:
        stage = self.stage
        requests = requests_of(self.model.embedder, stage, batch, self.kind, rows, rng)
        plan = self.model.plan_chunks(requests)
        values: dict[str, float] = {}
        context = self._context(batch, requests)

        def loss(v_NX: Tensor) -> Tensor:
            ordered = v_NX[plan.order_N]
            queries = gather_rows(ordered[: len(rows)])
            documents = gather_rows(ordered[len(rows) :])
            facts = BatchFacts(
                rows=len(queries),
                kind=self.kind,
                in_batch=batch.in_batch,
                width=self.model.readout.columns(plan.longest),
                longest=plan.longest,
                normalize=self.model.embedder.recipe.normalize,
                mean_score=any(getattr(h, "score", "") == "mean" for h in self.model.heads),
                labels_B=context.labels_B,
                teacher_BG=context.teacher_BG,
                guide_ND=context.guide_ND,
                positives_BM=context.positives_BM,
                equal_queries_BB=context.equal_queries_BB,
            )
            if stage.dynamic_negatives is not None:
                self.negatives_BG = _negative_scores(facts, queries, documents)
            total, parts = loss_of(stage.objective, facts, torch.cat([queries, documents]))
            values.update(parts)
            return total

        chunks = [partial(self._cast, chunk) for chunk in plan.chunks]
        if self.model.backbone.sharded:
            missing = max_over_processes(len(chunks)) - len(chunks)
            idle = [partial(self._cast, self.model.run_idle)] * missing
            # FSDP averages the shards' gradients over the processes.
            return float(backward_cached(chunks, loss, scale * process_count(), idle)), values
        cached = stage.batching.chunk_tokens is not None and len(plan.chunks) > 1
        run = backward_cached if cached else backward_plain
        return float(run(chunks, loss, scale)), values

    def _cast(self, chunk: Callable[[], Tensor]) -> Tensor:
        with self._autocast():
            return chunk()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        device = self.model.backbone.device.type
        return torch.autocast(device, dtype=getattr(torch, self.precision))

    def _context(self, batch: Batch, requests: Sequence[TextRequest]) -> _Context:
        """Return what the data and other models say of the whole batch, all processes' rows."""
        device, objective = self.model.backbone.device, self.stage.objective
        rows = batch.rows[: len(batch.rows) // process_count() * process_count()]
        if self.kind == "pairs":
            labels = torch.tensor([row.score for row in rows], device=device)
            return _Context(labels_B=labels, guide_ND=self._guide_vectors(requests))
        return _Context(
            teacher_BG=self._teacher_scores(rows) if reads_scores(objective) else None,
            guide_ND=self._guide_vectors(requests),
            positives_BM=known_positives(rows).to(device),
            equal_queries_BB=equal_queries(rows).to(device),
        )

    def _teacher_scores(self, rows: Sequence[BatchRow]) -> Tensor:
        """Return a teacher's scores, t_BG: a record's own, else those that a model gives."""
        mine = own_rows(rows)
        bare = [row for row in mine if not row.teacher]
        scorer = self.scorer or self.guide
        given = iter(scorer.scores(bare)) if scorer is not None and bare else iter(())
        lines = [torch.tensor(row.teacher) if row.teacher else next(given) for row in mine]
        return gather_rows(torch.stack(lines).to(self.model.backbone.device))

    def _guide_vectors(self, requests: Sequence[TextRequest]) -> Tensor | None:
        if self.guide is None:
            return None
        device = self.model.backbone.device
        vectors = [self.guide.embed(request).to(device) for request in requests]
        return torch.cat([gather_rows(v_ND) for v_ND in vectors])

    def _language(
        self, loss: Loss, rows: Sequence[BatchRow], rng: np.random.Generator, scale: float
    ) -> float:
        texts = [text for row in rows for text in (row.query, *row.documents[:1])]
        length = length_limit(self.stage)
        if self.model.backbone.head is None:
            raise InputError(f"objective {loss.kind!r} needs a model with a language-model head")
        with self._autocast():
            if loss.kind in BOTTLENECK:
                decoder: Any = self.model.extra["decoder"]
                return float(
                    backward_bottleneck(
                        self.model.embedder,
                        decoder,
                        texts,
                        loss,
                        max_length=length,
                        budget=self.model.budget,
                        rng=rng,
                        scale=scale * loss.weight / process_count(),
                    )
                )
            value = backward_language(
                self.model.backbone,
                texts,
                loss,
                max_length=length,
                budget=self.model.budget,
                probability=self.stage.mask_probability or 0.15,
                rng=rng,
                scale=scale * loss.weight,
            )
        return float(value)


def _negative_scores(facts: BatchFacts, queries: Tensor, documents: Tensor) -> Tensor:
    """Return the cosine of each query with its own hard negatives, s_BG."""
    q_BD, d_MD = (facts.head(v_NX, "dense").detach() for v_NX in (queries, documents))
    q_BD, d_MD = (functional.normalize(v_ND.float(), dim=1) for v_ND in (q_BD, d_MD))
    d_BGD = d_MD.unflatten(0, (len(q_BD), -1))[:, 1:]
    scores_BG: Tensor = (q_BD[:, None] * d_BGD).sum(2)
    return scores_BG.cpu()
