"""Contrastive loss over late interaction.

Shapes: B queries, G documents a query (positive first), M = B * G, Q and T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from embedlm.errors import InputError
from embedlm.losses._scores import false_negatives, full, positive, shaped, targets, without

__all__ = ["late_interaction", "maxsim"]


def late_interaction(
    q_BQD: Tensor,
    d_MTD: Tensor,
    q_mask_BQ: Tensor | None = None,
    d_mask_MT: Tensor | None = None,
    *,
    temperature: float = 1.0,
    length_normalize: bool = False,
    positives_BM: Tensor | None = None,
) -> Tensor:
    """InfoNCE over s(q, d) = sum_i max_j q_i . d_j (ColBERT, Khattab and Zaharia, SIGIR 2020).

    `length_normalize` divides s by the query's tokens (BGE-M3, arXiv 2402.03216). The masks are
    true at the tokens that count. Documents that `positives_BM` marks as positives of a query,
    beside the first of its own, are no negatives.

    Raises:
        InputError: for shapes that do not fit, or a text without a token.
    """
    if q_BQD.ndim != 3 or d_MTD.ndim != 3 or q_BQD.shape[2] != d_MTD.shape[2] or not len(q_BQD):
        raise InputError(
            f"queries {tuple(q_BQD.shape)} and documents {tuple(d_MTD.shape)} do not fit; "
            "give (B, Q, D) and (M, T, D)"
        )
    group, rest = divmod(len(d_MTD), len(q_BQD))
    if rest or not group:
        raise InputError(f"{len(d_MTD)} documents for {len(q_BQD)} queries; give G for each")
    positive(temperature=temperature)
    q_mask_BQ = _mask("q_mask", q_mask_BQ, q_BQD)
    d_mask_MT = _mask("d_mask", d_mask_MT, d_MTD)
    s_BM = maxsim(q_BQD, d_MTD, q_mask_BQ, d_mask_MT, length_normalize=length_normalize)
    s_BM = without(s_BM, false_negatives(positives_BM, len(q_BQD), len(d_MTD)))
    return functional.cross_entropy(s_BM / temperature, targets(len(q_BQD), group, s_BM.device))


def maxsim(
    q_BQD: Tensor,
    d_MTD: Tensor,
    q_mask_BQ: Tensor,
    d_mask_MT: Tensor,
    *,
    length_normalize: bool = False,
) -> Tensor:
    """Return s(q, d) = sum_i max_j q_i . d_j of every query with every document, s_BM.

    The masks are true at the tokens that count; `length_normalize` divides by the query's.
    """
    with torch.autocast(q_BQD.device.type, enabled=False):
        s_BMQT = torch.einsum("bqd,mtd->bmqt", full(q_BQD), full(d_MTD))
    best_BMQ = s_BMQT.masked_fill(~d_mask_MT[None, :, None], -torch.inf).amax(3)
    s_BM = best_BMQ.masked_fill(~q_mask_BQ[:, None], 0).sum(2)
    return s_BM / q_mask_BQ.sum(1, keepdim=True) if length_normalize else s_BM


def _mask(name: str, mask: Tensor | None, x: Tensor) -> Tensor:
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    shaped(name, mask, tuple(x.shape[:2]))
    mask = mask.bool()
    if not bool(mask.any(1).all()):
        raise InputError(f"{name} leaves a text without a token; keep at least one in each row")
    return mask
