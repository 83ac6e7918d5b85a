"""Losses that compare the order of pairs with their graded labels.

Shapes: B pairs, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from embedlm.losses._scores import full, positive, prepared, same_shape, shaped

__all__ = ["angle", "cosent"]


def cosent(a_BD: Tensor, b_BD: Tensor, labels_B: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Return log(1 + sum_{y_i > y_j} e^{(cos_j - cos_i) / t}) over pairs i, j (Su, CoSENT, 2022).

    The sum grows with the batch. The loss is 0 where all labels are equal.

    Raises:
        InputError: the shapes do not fit.
    """
    same_shape(a=a_BD, b=b_BD)
    return _ordered(
        (prepared(a_BD, "cosine") * prepared(b_BD, "cosine")).sum(1), labels_B, temperature
    )


def angle(a_BD: Tensor, b_BD: Tensor, labels_B: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Return CoSENT's loss of |cos(a, b) + sin(a, b)| (AnglE, arXiv 2309.12871).

    sin(a, b) = a_im . b_re - a_re . b_im: the first half of a unit vector is its real part, the
    second its imaginary part. An odd width is padded with 0.

    Raises:
        InputError: the shapes do not fit.
    """
    same_shape(a=a_BD, b=b_BD)
    pad = (0, a_BD.shape[1] % 2)
    a_BD, b_BD = (
        functional.pad(prepared(a_BD, "cosine"), pad),
        functional.pad(prepared(b_BD, "cosine"), pad),
    )
    (a_re, a_im), (b_re, b_im) = a_BD.chunk(2, dim=1), b_BD.chunk(2, dim=1)
    sine_B = (a_im * b_re - a_re * b_im).sum(1)
    return _ordered(((a_BD * b_BD).sum(1) + sine_B).abs(), labels_B, temperature)


def _ordered(scores_B: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """Return CoSENT's loss of the pairs' scores."""
    positive(temperature=temperature)
    shaped("labels", labels_B, (len(scores_B),))
    labels_B = full(labels_B)
    s_B = scores_B / temperature
    difference_BB = s_B[None, :] - s_B[:, None]
    difference_BB = difference_BB.masked_fill(labels_B[:, None] <= labels_B[None, :], -torch.inf)
    return torch.cat((difference_BB.new_zeros(1), difference_BB.flatten())).logsumexp(0)
