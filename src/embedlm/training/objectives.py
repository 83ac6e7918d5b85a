"""From a stage's losses to the gradient of a batch.

Losses on embeddings share one pass over the batch's texts, in chunks where it does not fit
(GradCache), over all devices where there are several; language modelling has a pass of its own.

Shapes: B queries, G documents a query, M = B * G, N = B + M, D width, L longest text in tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from embedlm import losses
from embedlm.losses.multi_vector import maxsim
from embedlm.schema.tuning import Loss

__all__ = [
    "EMBEDDING",
    "MASKS",
    "NOT_OF_LOSS",
    "TEACHERS",
    "BatchFacts",
    "LossRequirements",
    "head_of",
    "loss_of",
    "reads_scores",
]


@dataclass(frozen=True, slots=True)
class LossRequirements:
    """What a loss needs from the data."""

    kind: str
    """Kind of the records: groups, pairs, texts or any."""
    function: Callable[..., Tensor]
    negatives: bool = False
    """Hard negatives in every record."""
    teacher: bool = False
    """A teacher's scores, from the data or from a model."""
    guide: bool = False
    """Embeddings of another model."""
    head: str = "dense"
    """Heads that the loss reads, joined by +."""


EMBEDDING: dict[str, LossRequirements] = {
    "info_nce": LossRequirements("groups", losses.info_nce),
    "improved_info_nce": LossRequirements("groups", losses.improved_info_nce),
    "triplet": LossRequirements("groups", losses.triplet, negatives=True),
    "kl_distill": LossRequirements("groups", losses.kl_distill, teacher=True),
    "margin_mse": LossRequirements("groups", losses.margin_mse, negatives=True, teacher=True),
    "stable_distill": LossRequirements("groups", losses.stable_distill, teacher=True),
    "gist": LossRequirements("groups", losses.gist, guide=True),
    "guide_distill": LossRequirements("groups", losses.guide_distill, guide=True),
    "late_interaction": LossRequirements("groups", losses.late_interaction, head="multi_vector"),
    "alignment": LossRequirements("groups", losses.alignment),
    "cosent": LossRequirements("pairs", losses.cosent),
    "angle": LossRequirements("pairs", losses.angle),
    "cosine_mse": LossRequirements("pairs", losses.cosine_mse),
    "simcse": LossRequirements("texts", losses.info_nce),
    "embedding_distill": LossRequirements("any", losses.embedding_distill, guide=True),
    "uniformity": LossRequirements("any", losses.uniformity),
    "flops": LossRequirements("any", losses.flops, head="sparse"),
    "m3_self_distill": LossRequirements(
        "groups", losses.m3_self_distill, head="dense+sparse+multi_vector"
    ),
}
"""Losses on embeddings, by the name that a plan gives them."""
MASKS = ("positives_BM", "equal_queries_BB")
"""Arguments of losses that come from the batch, never from the plan."""
NOT_OF_LOSS = ("head", "teacher", "teachers", "reranker")
"""Options of a plan that are not arguments of the loss."""
TEACHERS = NOT_OF_LOSS[1:]
"""Options that name a model which gives scores."""


def reads_scores(objective: Sequence[Loss]) -> bool:
    """Tell whether a loss learns from scores, so that those of the records are used."""
    return any(loss.kind in EMBEDDING and EMBEDDING[loss.kind].teacher for loss in objective)


def head_of(loss: Loss) -> str:
    """Return the kind of head that a loss reads; several kinds are joined by +."""
    return str(loss.options.get("head", EMBEDDING[loss.kind].head))


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What is known of a batch beside its embeddings."""

    rows: int
    """Number of queries, B."""
    kind: str
    in_batch: bool
    width: Mapping[str, int]
    """Number of columns of each head's output, in their order within a row."""
    longest: int
    """Number of token vectors that a row has room for, L."""
    normalize: bool = False
    """Whether the recipe gives dense vectors the length 1."""
    mean_score: bool = False
    """Whether the recipe's MaxSim is the mean over a query's tokens."""
    labels_B: Tensor | None = None
    teacher_BG: Tensor | None = None
    guide_ND: Tensor | None = None
    """Another model's embeddings of the same texts."""
    positives_BM: Tensor | None = None
    """True where a document is known to be a positive of a query."""
    equal_queries_BB: Tensor | None = None
    """True where two queries are the same text or a positive of each other."""

    def masks(self, function: Callable[..., Tensor]) -> dict[str, Tensor | None]:
        """Return the masks that a loss takes, by the name of its argument."""
        names = inspect.signature(function).parameters
        masks = {name: getattr(self, name) for name in MASKS if name in names}
        if self.in_batch:
            return masks
        # Without in-batch negatives, no text of another query is a negative.
        others = {name: ~_of_own_query(mask) for name, mask in masks.items() if mask is not None}
        return {name: masks[name] | mask for name, mask in others.items()}

    def head(self, v_NX: Tensor, kind: str) -> Tensor:
        """Return the columns of one head, as the recipe gives its vectors."""
        names = list(self.width)
        columns: tuple[Tensor, ...] = v_NX.split(list(self.width.values()), dim=1)
        v_ND = columns[names.index(kind)]
        if kind == "dense" and self.normalize:
            return functional.normalize(v_ND.float(), dim=1)
        return v_ND


def _of_own_query(mask_BC: Tensor) -> Tensor:
    """Return the mask of the columns that belong to each row, o_BC."""
    rows, columns = mask_BC.shape
    own_BB = torch.eye(rows, dtype=torch.bool, device=mask_BC.device)
    return own_BB.repeat_interleave(columns // rows, dim=1)


def loss_of(
    objective: Sequence[Loss], facts: BatchFacts, v_NX: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum of a stage's losses on embeddings, and the value of each.

    Args:
        objective: the stage's losses; those that are not in `EMBEDDING` are skipped.
        facts: what is known of the batch.
        v_NX: rows of the queries, then of the documents, query by query (pairs: the first texts,
            then the second; texts: one view, then the other).
    """
    total = v_NX.new_zeros(())
    values: dict[str, float] = {}
    for loss in objective:
        if loss.kind not in EMBEDDING:
            continue
        several = "+" in head_of(loss)
        value = (
            _three(loss, facts, v_NX)
            if several
            else _value(loss, facts, facts.head(v_NX, head_of(loss)))
        )
        plain = several or head_of(loss) == "dense"
        name = loss.kind if plain else f"{head_of(loss)}_{loss.kind}"
        values[name] = float(value.detach())
        total = total + loss.weight * value
    return total, values


def _three(loss: Loss, facts: BatchFacts, v_NX: Tensor) -> Tensor:
    """Return BGE-M3's loss, which combines the scores of three heads."""
    rows, scores = facts.rows, []
    for kind in head_of(loss).split("+"):
        v_ND = facts.head(v_NX, kind).float()
        q, d = v_ND[:rows], v_ND[rows:]
        if kind == "multi_vector":
            scores.append(maxsim(*_tokens(facts, q, d), length_normalize=True))
            continue
        if kind == "dense":
            q, d = (functional.normalize(x, dim=1) for x in (q, d))
        scores.append(q @ d.mT)
    options = _options(loss) | facts.masks(losses.m3_self_distill)
    return losses.m3_self_distill(*scores, **options)


def _options(loss: Loss) -> dict[str, Any]:
    """Return the options of a plan that are arguments of the loss."""
    options: dict[str, Any] = {k: v for k, v in loss.options.items() if k not in NOT_OF_LOSS}
    if loss.temperature is not None:
        options["temperature"] = loss.temperature
    return options


def _tokens(facts: BatchFacts, *sides: Tensor) -> list[Tensor]:
    """Return the token vectors of both sides, x_NLD, and then their token masks, x_NL."""
    vectors = [side.unflatten(1, (facts.longest, -1)) for side in sides]
    return [*vectors, *((x_NLD != 0).any(-1) for x_NLD in vectors)]


def _value(loss: Loss, facts: BatchFacts, v_ND: Tensor) -> Tensor:
    function = EMBEDDING[loss.kind].function
    options = {**_options(loss), **facts.masks(function)}
    first, second = v_ND[: facts.rows], v_ND[facts.rows :]
    if loss.kind == "late_interaction":
        options.setdefault("length_normalize", facts.mean_score)
        return losses.late_interaction(*_tokens(facts, first, second), **options)
    if loss.kind in ("uniformity", "flops"):
        halves = [x for x in (first, second) if len(x)]
        each = [function(x, **options) for x in halves]
        return torch.stack(each).mean()
    embeddings, others = _arguments(loss, facts, v_ND, first, second)
    if loss.kind == "info_nce" and not facts.in_batch and "directions" not in options:
        options["own_group_only"] = True
    if loss.matryoshka:
        whole = v_ND.shape[1]
        widths = sorted({*(n for n in loss.matryoshka if n < whole), whole}, reverse=True)
        return losses.matryoshka(function, embeddings, *others, dims=widths, **options)
    return function(*embeddings, *others, **options)


def _arguments(
    loss: Loss, facts: BatchFacts, v_ND: Tensor, first: Tensor, second: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return a loss's arguments: embeddings, and those that matryoshka does not cut."""
    if loss.kind == "embedding_distill":
        assert facts.guide_ND is not None
        return [v_ND], [facts.guide_ND]
    if loss.kind in ("gist", "guide_distill"):
        assert facts.guide_ND is not None
        return [first, second], [facts.guide_ND[: facts.rows], facts.guide_ND[facts.rows :]]
    if EMBEDDING[loss.kind].teacher:
        assert facts.teacher_BG is not None
        return [first, second], [facts.teacher_BG]
    if EMBEDDING[loss.kind].kind == "pairs":
        assert facts.labels_B is not None
        return [first, second], [facts.labels_B]
    if loss.kind == "alignment":
        return [first, second[:: len(second) // facts.rows]], []
    return [first, second], []
