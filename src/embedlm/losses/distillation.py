"""Losses that compare a student with a teacher's scores or embeddings.

Shapes: B queries, G documents for each query (its positive first), M = B * G documents, D width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from embedlm.errors import InputError
from embedlm.losses._scores import (
    Similarity,
    choice,
    false_negatives,
    finite_log_softmax,
    full,
    group_size,
    own,
    own_columns,
    own_mask,
    positive,
    prepared,
    product,
    same_shape,
    shaped,
    soft_cross_entropy,
    targets,
    without,
)

__all__ = ["embedding_distill", "kl_distill", "m3_self_distill", "margin_mse", "stable_distill"]

Divergence = Literal["kl", "cross_entropy"]
Metric = Literal["mse", "l2", "cosine"]


def margin_mse(
    q_BD: Tensor,
    d_MD: Tensor,
    teacher: Tensor,
    *,
    similarity: Similarity = "dot",
    positives_BM: Tensor | None = None,
) -> Tensor:
    """Return mean ((s(q, d+) - s(q, d-)) - (t(q, d+) - t(q, d-)))^2.

    Source: Hofstätter et al., arXiv 2010.02666. `teacher` holds scores (B, G) or margins
    (B, G - 1); with one negative for each query, margins may also be (B,). The mean leaves out
    documents that `positives_BM` marks as positives of the query.

    Raises:
        InputError: the shapes do not fit.
    """
    group = group_size(q_BD, d_MD, at_least=2)
    rows = len(q_BD)
    allowed: list[tuple[int, ...]] = [(rows, group), (rows, group - 1)]
    shaped("teacher", teacher, *allowed, *([(rows,)] if group == 2 else []))
    s_BG = own(prepared(q_BD, similarity), prepared(d_MD, similarity))
    teacher = full(teacher).detach().to(s_BG)
    if teacher.shape == (rows, group):
        teacher = teacher[:, :1] - teacher[:, 1:]
    margins, teacher_margins = s_BG[:, :1] - s_BG[:, 1:], teacher.view(rows, group - 1)
    if (dropped_BM := false_negatives(positives_BM, rows, len(d_MD))) is not None:
        kept = ~own_columns(dropped_BM)[:, 1:]
        margins, teacher_margins = margins * kept, teacher_margins * kept
        return (margins - teacher_margins).square().sum() / kept.sum().clamp_min(1)
    return functional.mse_loss(margins, teacher_margins)


def kl_distill(
    q_BD: Tensor,
    d_MD: Tensor,
    teacher_BG: Tensor,
    *,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    similarity: Similarity = "dot",
    form: Divergence = "kl",
    positives_BM: Tensor | None = None,
) -> Tensor:
    """Return T^2 mean_i KL(softmax(t_i / T') || softmax(s_i / T)) over each query's own documents.

    Source: Lin et al., arXiv 2010.11386, as in sentence-transformers. T' defaults to T. The form
    "cross_entropy" is FlagEmbedding's kl_div: -mean_i sum p log softmax(s_i / T), without T^2;
    there, T' defaults to 1. Both distributions leave out documents after the first that
    `positives_BM` marks as positives of the query.

    Raises:
        InputError: the shapes or options do not fit.
    """
    group = group_size(q_BD, d_MD, at_least=2)
    shaped("teacher", teacher_BG, (len(q_BD), group))
    choice("form", form, get_args(Divergence))
    if teacher_temperature is None:
        teacher_temperature = temperature if form == "kl" else 1.0
    positive(temperature=temperature, teacher_temperature=teacher_temperature)
    s_BG = own(prepared(q_BD, similarity), prepared(d_MD, similarity)) / temperature
    t_BG = full(teacher_BG).detach().to(s_BG) / teacher_temperature
    if (dropped_BM := false_negatives(positives_BM, len(q_BD), len(d_MD))) is not None:
        s_BG, t_BG = (without(x_BG, own_columns(dropped_BM)) for x_BG in (s_BG, t_BG))
    p_BG = t_BG.softmax(1)
    if form == "cross_entropy":
        return soft_cross_entropy(s_BG, p_BG)
    return functional.kl_div(finite_log_softmax(s_BG), p_BG, reduction="batchmean") * temperature**2


def embedding_distill(student_BD: Tensor, teacher_BD: Tensor, *, metric: Metric = "mse") -> Tensor:
    """Return the distance of the student's embeddings from the teacher's.

    Source: Kim et al., arXiv 2301.12005. The metric is one of: mse, the mean of (x - t)^2 over all
    numbers; l2, mean_i |x_i - t_i|; cosine, mean_i 1 - cos(x_i, t_i).

    Raises:
        InputError: the metric is not known, or the shapes differ. A student of another width must
            be projected to the teacher's first.
    """
    same_shape(student=student_BD, teacher=teacher_BD)
    choice("metric", metric, get_args(Metric))
    x_BD, t_BD = full(student_BD), full(teacher_BD).detach()
    if metric == "mse":
        return functional.mse_loss(x_BD, t_BD.to(x_BD))
    if metric == "l2":
        distance_B: Tensor = torch.linalg.vector_norm(x_BD - t_BD, dim=1)
        return distance_B.mean()
    return (1 - (prepared(x_BD, "cosine") * prepared(t_BD, "cosine")).sum(1)).mean()


def m3_self_distill(
    dense_BM: Tensor,
    sparse_BM: Tensor,
    multi_BM: Tensor,
    *,
    temperature: float = 0.02,
    sparse_weight: float = 0.3,
    multi_weight: float = 1.0,
    sparse_loss_weight: float = 0.1,
    distill: bool = True,
    positives_BM: Tensor | None = None,
) -> Tensor:
    """Return BGE-M3's loss, in which three heads learn from the sum of their scores.

    Source: arXiv 2402.03216 and FlagEmbedding. All scores are divided by the temperature, and
    s_all = s_dense + 0.3 s_sparse + s_multi. With L the cross entropy of a head's scores to the
    positive, L1 = (L_dense + 0.1 L_sparse + L_multi + L_all) / 4. With p = softmax(s_all), through
    which no gradient runs, and K = -mean sum p log softmax(s), L2 = (K_dense + 0.1 K_sparse +
    K_multi) / 3. The loss is (L1 + L2) / 2, or L1 without `distill`. Column i * M / B holds the
    positive of row i. A query's softmax leaves out documents after its positive that `positives_BM`
    marks as positives too.

    Raises:
        InputError: the shapes do not fit.
    """
    same_shape(dense=dense_BM, sparse=sparse_BM, multi=multi_BM)
    positive(temperature=temperature)
    group, rest = divmod(dense_BM.shape[1], len(dense_BM))
    if rest or not group:
        raise InputError(
            f"the scores have shape {tuple(dense_BM.shape)}; give a row for each query, and a "
            "column for each document: equally many documents for each query"
        )
    dropped_BM = false_negatives(positives_BM, *dense_BM.shape)
    dense, sparse, multi = (full(x) / temperature for x in (dense_BM, sparse_BM, multi_BM))
    both = without(dense + sparse_weight * sparse + multi_weight * multi, dropped_BM)
    dense, sparse, multi = (without(x, dropped_BM) for x in (dense, sparse, multi))
    index_B = targets(len(dense), group, dense.device)
    hard = [functional.cross_entropy(x, index_B) for x in (dense, sparse, multi, both)]
    loss = (hard[0] + sparse_loss_weight * hard[1] + hard[2] + hard[3]) / 4
    if not distill:
        return loss
    p_BM = both.detach().softmax(1)
    soft = [soft_cross_entropy(x, p_BM) for x in (dense, sparse, multi)]
    return (loss + (soft[0] + sparse_loss_weight * soft[1] + soft[2]) / 3) / 2


def stable_distill(
    q_BD: Tensor,
    d_MD: Tensor,
    teacher_BG: Tensor,
    *,
    temperature: float = 0.02,
    similarity: Similarity = "dot",
    positives_BM: Tensor | None = None,
) -> Tensor:
    """Return sum_g mean_i p_ig CE_ig, with p_i = softmax(t_i).

    CE_ig is the cross entropy of query i's scores over the batch to its document g, where the
    query's own documents 0 to g - 1 are left out. Source: LLM-Embedder, arXiv 2310.07554, and
    FlagEmbedding's m3_kd_loss. Each query's documents should be sorted by the teacher's score, the
    highest first. A document that `positives_BM` marks as a positive of the query is the target of
    its own term and never a negative in another.

    Raises:
        InputError: the shapes do not fit.
    """
    group = group_size(q_BD, d_MD)
    shaped("teacher", teacher_BG, (len(q_BD), group))
    positive(temperature=temperature)
    s_BM = product(prepared(q_BD, similarity), prepared(d_MD, similarity)) / temperature
    p_BG = full(teacher_BG).detach().to(s_BM).softmax(1)
    first_B = targets(len(q_BD), group, s_BM.device)
    own_BM = own_mask(len(q_BD), group, s_BM.device)
    rank_M = torch.arange(len(d_MD), device=s_BM.device) % group
    dropped_BM = false_negatives(positives_BM, len(q_BD), len(d_MD))
    loss = s_BM.new_zeros(())
    for g in range(group):
        rest_BM = s_BM.masked_fill(own_BM & (rank_M < g), -torch.inf)
        if dropped_BM is not None:
            rest_BM = without(rest_BM, dropped_BM.scatter(1, (first_B + g)[:, None], False))
        loss = (
            loss
            + (p_BG[:, g] * functional.cross_entropy(rest_BM, first_B + g, reduction="none")).mean()
        )
    return loss
