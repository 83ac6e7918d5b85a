"""A loss at several widths of the embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from embedlm.errors import InputError
from embedlm.losses._scores import full

__all__ = ["matryoshka"]


def matryoshka(
    loss: Callable[..., Tensor],
    embeddings: Sequence[Tensor],
    *others: Any,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    average: bool = False,
    renormalize: bool = True,
    **options: Any,
) -> Tensor:
    """sum_m c_m loss(v[:m], ...), Kusupati et al., arXiv 2205.13147; each v[:m] of length 1.

    `embeddings` are cut; `others` (labels, a guide's embeddings) and `options` go to the loss as
    they are. c_m is 1 unless given; `average` divides by the number of widths (FlagEmbedding).

    Raises:
        InputError: for a width the embeddings do not have, or not one weight a width.
    """
    widest = min((x.shape[-1] for x in embeddings), default=0)
    if not dims or not all(0 < dim <= widest for dim in dims):
        raise InputError(f"dims are {list(dims)}; give widths from 1 to {widest}")
    if weights is None:
        weights = [1.0] * len(dims)
    if len(weights) != len(dims):
        raise InputError(f"{len(weights)} weights for {len(dims)} dims; give one for each")
    parts = []
    for dim, weight in zip(dims, weights, strict=True):
        cut = [full(x)[..., :dim] for x in embeddings]
        if renormalize:
            cut = [functional.normalize(x, dim=-1) for x in cut]
        parts.append(weight * loss(*cut, *others, **options))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(dims) if average else total
