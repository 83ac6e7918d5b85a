"""The gradient of one batch.

Shapes: B queries of all ranks, N texts of this rank, X columns of all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
from embedlm.training.objectives import EMBEDDING, BatchFacts, head_of, loss_of
from embedlm.training.requests import requests_of
from embedlm.training.teachers import EmbeddingTeacher, RerankingTeacher, TeacherPanel
from embedlm.training.trainable import TextRequest, TrainableEmbedder

__all__ = ["Stepper", "length_limit", "trained_heads"]

LENGTH = 512
"""Tokens of a text in a language modelling objective, where nothing else is said."""


def length_limit(stage: Stage) -> int:
    """Return how many tokens a stage reads of a text of any role."""
    limit = stage.max_length
    return max(limit.values()) if isinstance(limit, dict) else limit or LENGTH


def trained_heads(embedder_heads: Sequence[Head], objective: Sequence[Loss]) -> tuple[Head, ...]:
    """Return the heads that the losses read, with the recipe's own options."""
    named = [head_of(loss).split("+") for loss in objective if loss.kind in EMBEDDING]
    kinds = dict.fromkeys(kind for kinds in named for kind in kinds)
    return tuple(parse_head(kind, tuple(embedder_heads)) for kind in kinds)


@dataclass(slots=True)
class Stepper:
    """Turns a batch into gradients."""

    model: TrainableEmbedder
    stage: Stage
    kind: str
    seed: int
    precision: str = "float32"
    guide: EmbeddingTeacher | None = None
    judge: RerankingTeacher | TeacherPanel | None = None
    """Gives the scores that records lack."""
    negatives_BG: Tensor | None = None
    """Cosine of each query of the last batch with its own hard negatives, where they may change."""

    def backward(self, batch: Batch, scale: float = 1.0) -> dict[str, float]:
        """Add the batch's gradient to the parameters; return the losses, `loss` being their sum.

        Args:
            batch: of the step.
            scale: of the gradient.
        """
        chance = np.random.default_rng([self.seed, 3, batch.step, process_rank()])
        rows = list(own_rows(batch.rows))
        told: dict[str, float] = {}
        total = 0.0
        if any(loss.kind in EMBEDDING for loss in self.stage.objective):
            loss, told = self._embedding(batch, rows, chance, scale)
            total += loss
        for loss_ in self.stage.objective:
            if loss_.kind in LANGUAGE:
                told[loss_.kind] = self._language(loss_, rows, chance, scale)
                total += loss_.weight * told[loss_.kind]
        return {"loss": total, **told}

    def _embedding(
        self, batch: Batch, rows: Sequence[BatchRow], chance: np.random.Generator, scale: float
    ) -> tuple[float, dict[str, float]]:
        stage, embedder = self.stage, self.model.embedder
        requests = requests_of(embedder, stage, batch, self.kind, rows, chance)
        plan = self.model.plan_chunks(requests)
        told: dict[str, float] = {}
        labels_B, teacher_BG, guide_ND = self._beside(batch, requests)
        own = len(rows)

        def loss(v_NX: Tensor) -> Tensor:
            ordered = v_NX[plan.order_N]
            queries, documents = gather_rows(ordered[:own]), gather_rows(ordered[own:])
            parts = BatchFacts(
                len(queries),
                self.kind,
                batch.in_batch,
                self.model.readout.columns(plan.longest),
                plan.longest,
                labels_B,
                teacher_BG,
                guide_ND,
            )
            if stage.dynamic_negatives is not None:
                self.negatives_BG = _negatives(parts, queries, documents)
            found, values = loss_of(stage.objective, parts, torch.cat([queries, documents]))
            told.update(values)
            return found

        chunks = [lambda c=chunk: self._cast(c) for chunk in plan.chunks]
        sharded = self.model.backbone.sharded
        if sharded:
            idle = [lambda: self._cast(self.model.run_idle)] * (
                max_over_processes(len(chunks)) - len(chunks)
            )
            # Shards' gradients are means over the processes.
            return float(backward_cached(chunks, loss, scale * process_count(), idle)), told
        cached = stage.batching.chunk_tokens is not None and len(plan.chunks) > 1
        run = backward_cached if cached else backward_plain
        return float(run(chunks, loss, scale)), told

    def _cast(self, chunk: Any) -> Tensor:
        with self._autocast():
            found: Tensor = chunk()
        return found

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        device = self.model.backbone.device.type
        return torch.autocast(device, dtype=getattr(torch, self.precision))

    def _beside(
        self, batch: Batch, requests: Sequence[TextRequest]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return what the data and another model say of the whole batch."""
        device, losses = self.model.backbone.device, self.stage.objective
        each = len(batch.rows) // process_count() * process_count()
        rows = batch.rows[:each]
        labels = teacher = guide = None
        if self.kind == "pairs":
            labels = torch.tensor([row.score for row in rows], device=device)
        if rows and rows[0].teacher:
            teacher = torch.tensor([row.teacher for row in rows], device=device)
        elif any(loss.kind in EMBEDDING and EMBEDDING[loss.kind].teacher for loss in losses):
            judge = self.judge or self.guide
            assert judge is not None
            teacher = gather_rows(judge.scores(own_rows(rows)).to(device))
        if self.guide is not None:
            guide = torch.cat(
                [gather_rows(self.guide.embed(request).to(device)) for request in requests]
            )
        return labels, teacher, guide

    def _language(
        self, loss: Loss, rows: Sequence[BatchRow], chance: np.random.Generator, scale: float
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
                        chance=chance,
                        scale=scale * loss.weight / process_count(),
                    )
                )
            found = backward_language(
                self.model.backbone,
                texts,
                loss,
                max_length=length,
                budget=self.model.budget,
                probability=self.stage.mask_probability or 0.15,
                chance=chance,
                scale=scale * loss.weight,
            )
        return float(found)


def _negatives(parts: BatchFacts, queries: Tensor, documents: Tensor) -> Tensor:
    """Return the cosine of each query with its own hard negatives, s_BG."""
    q_BD, d_MD = (parts.head(v_NX, "dense").detach() for v_NX in (queries, documents))
    q_BD, d_MD = (functional.normalize(v_ND.float(), dim=1) for v_ND in (q_BD, d_MD))
    d_BGD = d_MD.unflatten(0, (len(q_BD), -1))[:, 1:]
    scores_BG: Tensor = (q_BD[:, None] * d_BGD).sum(2)
    return scores_BG.cpu()
