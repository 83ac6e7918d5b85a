"""Losses of several teachers, and of several tasks at once.

Shapes: B queries, G documents a query, M = B * G, P graded pairs, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embedlm.errors import InputError
from embedlm.losses._scores import Similarity, positive, shaped
from embedlm.losses.contrastive import info_nce
from embedlm.losses.distillation import kl_distill
from embedlm.losses.ranking import cosent

__all__ = ["cross_task_balanced", "multi_teacher_distill"]


def multi_teacher_distill(
    q_BD: Tensor,
    d_MD: Tensor,
    teachers: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
    similarity: Similarity = "dot",
    positives_BM: Tensor | None = None,
) -> Tensor:
    """KL divergence from the teachers' mean scores (DiSCo, Lupart et al., arXiv 2410.14609).

    T = sum_k w_k T_k / sum_k w_k, (B, G); then t^2 KL(softmax(T / t) to softmax(s / t)).
    `positives_BM` is the mask of `kl_distill`.

    Raises:
        InputError: no teacher, another number of weights, or shapes that do not fit.
    """
    if not teachers:
        raise InputError("no teacher's scores were given; give one (B, G) for each teacher")
    share = [1.0] * len(teachers) if weights is None else [float(weight) for weight in weights]
    if len(share) != len(teachers):
        raise InputError(f"{len(share)} weights were given for {len(teachers)} teachers")
    positive(weights=sum(share))
    for index, scores in enumerate(teachers):
        shaped(f"teachers[{index}]", scores, (len(q_BD), len(d_MD) // max(1, len(q_BD))))
    mean_BG = torch.stack([w * t.float() for w, t in zip(share, teachers, strict=True)]).sum(0)
    return kl_distill(
        q_BD,
        d_MD,
        mean_BG / sum(share),
        temperature=temperature,
        similarity=similarity,
        positives_BM=positives_BM,
    )


def cross_task_balanced(
    q_BD: Tensor,
    d_MD: Tensor,
    a_PD: Tensor,
    b_PD: Tensor,
    labels_P: Tensor,
    *,
    temperature: float = 0.02,
    cosent_temperature: float = 0.05,
    beta: float = 0.8,
    positives_BM: Tensor | None = None,
) -> Tensor:
    """Retrieval and graded pairs in one step: InfoNCE + beta CoSENT (Conan, arXiv 2408.15710).

    The paper has some devices on one task and the rest on the other; with rows gathered from all
    devices this is its sum, whatever lies where. `positives_BM` is the mask of `info_nce`.

    Raises:
        InputError: for shapes that do not fit.
    """
    retrieval = info_nce(q_BD, d_MD, temperature=temperature, positives_BM=positives_BM)
    return retrieval + beta * cosent(a_PD, b_PD, labels_P, temperature=cosent_temperature)
