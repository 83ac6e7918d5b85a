"""What losses are checked for before anything is loaded: that they can learn from their data.

The options of a loss are checked for their names and values in loss_options.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from embedlm.errors import InputError, closest
from embedlm.schema.tuning import Loss
from embedlm.training.batches import Batches
from embedlm.training.language import LANGUAGE
from embedlm.training.loss_options import check_options, check_values
from embedlm.training.objectives import EMBEDDING, TEACHERS, LossRequirements

__all__ = ["check_objective"]

log = logging.getLogger(__name__)

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
        check_options(loss)
        if loss.kind in EMBEDDING:
            _check_data(loss, EMBEDDING[loss.kind], batches)
            _check_contrast(loss, batches)
            check_values(loss, batches)


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
    if loss.kind in ("uniformity", *ORDER) and batches.size < 2:
        what = "texts" if loss.kind == "uniformity" else "pairs"
        raise InputError(f"{where}: it compares {what}; give a batching.size of 2 or more")
    if loss.kind in CONTRASTIVE and not batches.negatives:
        _check_unlike(where, batches)
    _check_order(loss, where, batches)


def _check_unlike(where: str, batches: Batches) -> None:
    """Refuse data in which no text of one record could be a negative of another's."""
    items = [item for records in batches.sets for item in records.items]
    if batches.kind == "texts":
        sides = {"text": {str(item) for item in items}}
    else:
        sides = {
            "query": {item.query for item in items},
            "positive": {text for item in items for text in item.positives},
        }
    for name, texts in sides.items():
        if len(texts) == 1:
            raise InputError(
                f"{where}: all records have the same {name}, so that none is a negative of "
                "another; give records of several, or with negatives"
            )


def _check_order(loss: Loss, where: str, batches: Batches) -> None:
    """Refuse pairs of one score, whose order says nothing."""
    scores = {
        item.score for records in batches.sets for item in records.items if loss.kind in ORDER
    }
    if len(scores) == 1:
        raise InputError(
            f"{where}: all pairs have the score {scores.pop():g}, and it learns from their order; "
            "give pairs of different scores, or take cosine_mse"
        )
