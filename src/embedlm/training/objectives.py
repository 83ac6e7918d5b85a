"""From a stage's losses to the gradient of a batch.

Losses on embeddings share one pass over the batch's texts, in chunks where it does not fit
(GradCache), over all devices where there are several; language modelling has a pass of its own.

Shapes: B queries, G documents a query, M = B * G, N = B + M, D width, L longest text in tokens.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embedlm import losses
from embedlm.errors import InputError, closest
from embedlm.losses.multi_vector import maxsim
from embedlm.schema.tuning import Loss
from embedlm.training.batches import Batches
from embedlm.training.language import LANGUAGE

__all__ = [
    "EMBEDDING",
    "TEACHERS",
    "BatchFacts",
    "check_objective",
    "head_of",
    "loss_of",
    "reads_scores",
]

log = logging.getLogger(__name__)


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
_MASKS = ("positives_BM", "equal_queries_BB")
"""Arguments of losses that come from the batch, never from the plan."""
CONTRASTIVE = (
    "info_nce",
    "improved_info_nce",
    "gist",
    "late_interaction",
    "m3_self_distill",
    "stable_distill",
    "simcse",
)
"""Losses that tell a positive from negatives."""
ORDER = ("cosent", "angle")
"""Losses on the order of scored pairs."""
_OWN = ("head", "teacher", "teachers", "reranker")
"""Options of a plan that are not arguments of the loss."""
TEACHERS = _OWN[1:]
"""Options that name a model which gives scores."""


def reads_scores(objective: Sequence[Loss]) -> bool:
    """Tell whether a loss learns from scores, so that those of the records are used."""
    return any(loss.kind in EMBEDDING and EMBEDDING[loss.kind].teacher for loss in objective)


def check_objective(objective: Sequence[Loss], batches: Batches) -> None:
    """Refuse a loss that is not known or that cannot learn from the stage's data.

    Raises:
        InputError: it says what the loss needs.
    """
    _check_group_size(batches)
    known = [*EMBEDDING, *LANGUAGE]
    for loss in objective:
        if loss.kind not in known:
            raise InputError(
                f"objective {loss.kind!r} is not known; allowed: {', '.join(known)}."
                + closest(loss.kind, known)
            )
        if loss.kind in EMBEDDING:
            needs = EMBEDDING[loss.kind]
            _check_data(loss, needs, batches)
            _check_options(loss, needs)
            _check_contrast(loss, batches)


def _check_data(loss: Loss, needs: LossRequirements, batches: Batches) -> None:
    """Refuse a loss whose kind of record, hard negatives or teacher the data lack."""
    if needs.kind not in ("any", batches.kind):
        wanted = {
            "groups": "a query with its positive (and negatives)",
            "pairs": "two texts and their score",
            "texts": "bare texts",
        }[needs.kind]
        raise InputError(
            f"objective {loss.kind!r} needs {wanted}, but the records are {batches.kind}"
        )
    has_negatives = all(records.has_negatives for records in batches.sets)
    if needs.negatives and (not has_negatives or not batches.negatives):
        raise InputError(
            f"objective {loss.kind!r} needs hard negatives in every record and a group_size "
            "of 2 or more; mine some first, or take info_nce"
        )
    has_scores = all(records.has_scores for records in batches.sets)
    if needs.teacher and not has_scores and not set(TEACHERS) & set(loss.options):
        raise InputError(
            f"objective {loss.kind!r} needs a teacher's scores in every record (`scores`, or "
            "pos_scores and neg_scores), or a model that gives them: options: {reranker: MODEL}, "
            "{teacher: MODEL} or {teachers: [MODEL, ...]}"
        )
    if needs.guide and not loss.options.get("teacher"):
        raise InputError(
            f"objective {loss.kind!r} compares with another model; name it: "
            "options: {teacher: MODEL}"
        )


def _check_group_size(batches: Batches) -> None:
    """Refuse to leave out the negatives of some records because others have none; tell if none has.

    Raises:
        InputError: a teacher has scored each record's own, so that no others can stand in for them.
    """
    size = batches.batching.group_size
    if batches.negatives or size == 1 or batches.kind != "groups":
        return
    bare = batches.without_negatives
    if bare < batches.total:
        raise InputError(
            f"{bare:,} of the {batches.total:,} records have no negatives, and the objective "
            "learns from the scores of each record's own; leave these records out, mine negatives "
            "for them, or set group_size: 1"
        )
    if "group_size" in batches.batching.model_fields_set:
        log.warning(
            "no record has negatives, so group_size %d changes nothing: the other documents of a "
            "batch are the negatives; embedlm mine adds hard ones",
            size,
        )


def _check_contrast(loss: Loss, batches: Batches) -> None:
    """Refuse data in which all that a loss would tell apart is alike."""
    where = f"objective {loss.kind!r} cannot learn from these data"
    if loss.kind in ("kl_distill", "margin_mse") and not batches.negatives:
        raise InputError(
            f"{where}: it compares the documents of one query, and each query has one; give "
            "records with negatives and a group_size of 2 or more"
        )
    isolated = batches.size < 2 or not all(data.in_batch_negatives for data in batches.data)
    if loss.kind in CONTRASTIVE and isolated and not batches.negatives:
        raise InputError(
            f"{where}: a query has no negatives; give records with negatives and a group_size of 2 "
            "or more, or a batching.size of 2 or more with in_batch_negatives: true"
        )
    if loss.kind == "uniformity" and batches.size < 2:
        raise InputError(f"{where}: it compares texts; give a batching.size of 2 or more")
    scores = {
        item.score for records in batches.sets for item in records.items if loss.kind in ORDER
    }
    if len(scores) == 1:
        raise InputError(
            f"{where}: all pairs have the score {scores.pop():g}, and it learns from their order; "
            "give pairs of different scores, or take cosine_mse"
        )


def _check_options(loss: Loss, needs: LossRequirements) -> None:
    """Refuse an option that the loss does not have, and a head whose output it cannot read."""
    heads = ("dense", "sparse") if needs.head in ("dense", "sparse") else (needs.head,)
    if head_of(loss) not in heads:
        raise InputError(
            f"objective {loss.kind!r} cannot read the head {head_of(loss)!r}; allowed: "
            f"{', '.join(heads)}"
        )
    parameters = inspect.signature(needs.function).parameters.values()
    own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _MASKS]
    allowed = sorted({*own, *_OWN})
    for name in loss.options:
        if name not in allowed:
            raise InputError(
                f"objective {loss.kind!r} has no option {name!r}; allowed: {', '.join(allowed)}."
                + closest(name, allowed)
            )


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
        masks = {name: getattr(self, name) for name in _MASKS if name in names}
        if self.in_batch:
            return masks
        # Without in-batch negatives, no text of another query is a negative.
        others = {name: ~_of_own_query(mask) for name, mask in masks.items() if mask is not None}
        return {name: masks[name] | mask for name, mask in others.items()}

    def head(self, v_NX: Tensor, kind: str) -> Tensor:
        """Return the columns of one head."""
        names = list(self.width)
        columns: tuple[Tensor, ...] = v_NX.split(list(self.width.values()), dim=1)
        return columns[names.index(kind)]


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
            q, d = (torch.nn.functional.normalize(x, dim=1) for x in (q, d))
        scores.append(q @ d.mT)
    return losses.m3_self_distill(*scores, **_options(loss), positives_BM=facts.positives_BM)


def _options(loss: Loss) -> dict[str, Any]:
    """Return the options of a plan that are arguments of the loss."""
    options: dict[str, Any] = {k: v for k, v in loss.options.items() if k not in _OWN}
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
