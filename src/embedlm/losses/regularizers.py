"""Terms on the distribution of embeddings.

Shapes: B texts or pairs, D width, V terms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embedlm.errors import InputError
from embedlm.losses._scores import full, matrix, positive, prepared, product, same_shape

__all__ = ["alignment", "flops", "uniformity"]


def flops(w_BV: Tensor) -> Tensor:
    """sum_v (mean_i |w_iv|)^2, the work of a sparse index (Paria et al., arXiv 2004.05665).

    Raises:
        InputError: unless w is a matrix with rows.
    """
    matrix(weights=w_BV)
    return full(w_BV).abs().mean(0).square().sum()


def uniformity(x_BD: Tensor, *, t: float = 2.0) -> Tensor:
    """log mean_{i<j} e^{-t |x_i - x_j|^2} of unit vectors (Wang and Isola, arXiv 2005.10242).

    Raises:
        InputError: for fewer than two rows.
    """
    matrix(embeddings=x_BD)
    positive(t=t)
    if len(x_BD) < 2:
        raise InputError("uniformity compares embeddings; give at least two rows")
    x_BD = prepared(x_BD, "cosine")
    i, j = torch.triu_indices(len(x_BD), len(x_BD), 1, device=x_BD.device)
    distance_P = 2 - 2 * product(x_BD, x_BD)[i, j]
    return (-t * distance_P).logsumexp(0) - math.log(len(i))


def alignment(a_BD: Tensor, b_BD: Tensor, *, alpha: float = 2.0) -> Tensor:
    """mean_i |a_i - b_i|^alpha of unit vectors (Wang and Isola, arXiv 2005.10242).

    Raises:
        InputError: for shapes that do not fit.
    """
    same_shape(a=a_BD, b=b_BD)
    positive(alpha=alpha)
    square_B = (prepared(a_BD, "cosine") - prepared(b_BD, "cosine")).square().sum(1)
    # The root has no gradient at 0.
    return square_B.mean() if alpha == 2 else square_B.clamp_min(1e-12).pow(alpha / 2).mean()
