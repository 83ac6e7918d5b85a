"""Losses that compare with the vectors of a guide model, of any width.

Shapes: B queries, G documents a query (positive first), M = B * G, D and E widths.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from embedlm.errors import InputError
from embedlm.losses._scores import (
    choice,
    equal_queries,
    false_negatives,
    group_size,
    positive,
    prepared,
    product,
    soft_cross_entropy,
    targets,
    without,
)

__all__ = ["gist", "guide_distill"]

Margin = Literal["absolute", "relative"]


def gist(
    q_BD: Tensor,
    d_MD: Tensor,
    guide_q_BE: Tensor,
    guide_d_ME: Tensor,
    *,
    temperature: float = 0.01,
    margin: float = 0.0,
    margin_strategy: Margin = "absolute",
    contrast_queries: bool = True,
    contrast_positives: bool = True,
    positives_BM: Tensor | None = None,
    equal_queries_BB: Tensor | None = None,
) -> Tensor:
    """InfoNCE without candidates that the guide g finds too near (GISTEmbed, arXiv 2402.16829).

    Candidate c of query i is dropped where g(., c) > g(q_i, d_i+) - margin (absolute) or
    > g(q_i, d_i+) - |g(q_i, d_i+)| * margin (relative); the positive never is. Candidates are all
    documents, all other queries, and the other positives against d_i+. The masks are those of
    `info_nce`: what they mark is dropped too.

    Raises:
        InputError: for shapes or options that do not fit.
    """
    group = _checked_group(q_BD, d_MD, guide_q_BE, guide_d_ME)
    positive(temperature=temperature)
    choice("margin_strategy", margin_strategy, get_args(Margin))
    q, d, guide_q, guide_d = (
        prepared(x, "cosine") for x in (q_BD, d_MD, guide_q_BE.detach(), guide_d_ME.detach())
    )
    p, guide_p = d[::group], guide_d[::group]
    itself = torch.eye(len(q), dtype=torch.bool, device=q.device)
    index_B1 = targets(len(q), group, q.device)[:, None]
    guide_BM = product(guide_q, guide_d)
    limit_B1 = _limit(guide_BM.gather(1, index_B1), margin, margin_strategy)
    keep = torch.zeros_like(guide_BM, dtype=torch.bool).scatter(1, index_B1, True)
    s_BM = product(q, d).masked_fill((guide_BM > limit_B1) & ~keep, -torch.inf)
    dropped_BM = false_negatives(positives_BM, len(q), len(d))
    blocks = [without(s_BM, dropped_BM)]
    positives_BB = None if dropped_BM is None else dropped_BM[:, ::group]
    sides = (
        (contrast_queries, q, guide_q, equal_queries(equal_queries_BB, len(q))),
        (contrast_positives, p, guide_p, positives_BB),
    )
    for contrasted, x, guide, known_BB in sides:
        if contrasted:
            dropped = (product(guide, guide) > limit_B1) | itself
            blocks.append(without(without(product(x, x), dropped), known_BB))
    logits = torch.cat(blocks, dim=1) / temperature
    return functional.cross_entropy(logits, index_B1[:, 0])


def _limit(near_B1: Tensor, margin: float, strategy: Margin) -> Tensor:
    """Return the guide's score above which a candidate is dropped, from that of the positive."""
    return near_B1 - (margin if strategy == "absolute" else near_B1.abs() * margin)


def _checked_group(q_BD: Tensor, d_MD: Tensor, guide_q_BE: Tensor, guide_d_ME: Tensor) -> int:
    """Return the documents of a query, which must be as many for the guide as for the model."""
    group = group_size(q_BD, d_MD)
    if group_size(guide_q_BE, guide_d_ME) != group or len(guide_q_BE) != len(q_BD):
        raise InputError(
            f"the guide has {len(guide_q_BE)} queries and {len(guide_d_ME)} documents, the model "
            f"{len(q_BD)} and {len(d_MD)}; embed the same texts with both"
        )
    return group


def guide_distill(
    q_BD: Tensor,
    d_MD: Tensor,
    guide_q_BE: Tensor,
    guide_d_ME: Tensor,
    *,
    temperature: float = 0.05,
    guide_temperature: float = 0.05,
    positives_BM: Tensor | None = None,
) -> Tensor:
    """Return -mean_i sum_j p_ij log softmax_j(cos(q_i, d_j) / T), over all documents of the batch.

    p_i = softmax_j(g(q_i, d_j) / T') are the guide's cosines. It is the listwise distillation of
    CADET (arXiv 2505.19274), whose list here is the whole batch: a list as long costs nothing more,
    since every text is embedded once. Documents that `positives_BM` marks as further positives of a
    query are left out of its list.

    Raises:
        InputError: for shapes or options that do not fit.
    """
    _checked_group(q_BD, d_MD, guide_q_BE, guide_d_ME)
    positive(temperature=temperature, guide_temperature=guide_temperature)
    dropped_BM = false_negatives(positives_BM, len(q_BD), len(d_MD))
    guide_q, guide_d = (prepared(x.detach(), "cosine") for x in (guide_q_BE, guide_d_ME))
    p_BM = without(product(guide_q, guide_d) / guide_temperature, dropped_BM).softmax(1)
    s_BM = product(prepared(q_BD, "cosine"), prepared(d_MD, "cosine")) / temperature
    return soft_cross_entropy(without(s_BM, dropped_BM), p_BM)
