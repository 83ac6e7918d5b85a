"""Scores and shape checks that the losses share.

Shapes: B queries, G documents a query, M = B * G documents, D width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from embedlm.errors import InputError

Similarity = Literal["cosine", "dot"]


def full(x: Tensor) -> Tensor:
    """Return x in float32 (float64 stays)."""
    return x if x.dtype == torch.float64 else x.float()


def choice(name: str, given: object, allowed: tuple[object, ...]) -> None:
    """Raise InputError unless `given` is allowed."""
    if given not in allowed:
        raise InputError(f"{name} is {given!r}; allowed: {', '.join(map(repr, allowed))}")


def positive(**values: float) -> None:
    """Raise InputError unless every value is above zero."""
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name} is {value}; give a number above 0")


def matrix(**tensors: Tensor) -> None:
    """Raise InputError unless every tensor has two dimensions and at least one row."""
    for name, x in tensors.items():
        if x.ndim != 2 or not len(x):
            raise InputError(f"{name} has shape {tuple(x.shape)}; give (rows, width), rows > 0")


def same_shape(**tensors: Tensor) -> None:
    """Raise InputError unless all tensors are matrices of one shape."""
    matrix(**tensors)
    if len({x.shape for x in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise InputError(f"shapes differ: {shapes}; give one row a pair on both sides")


def shaped(name: str, x: Tensor, *allowed: tuple[int, ...]) -> None:
    """Raise InputError unless x has one of the allowed shapes."""
    if tuple(x.shape) not in allowed:
        raise InputError(
            f"{name} has shape {tuple(x.shape)}; allowed: {' or '.join(map(str, allowed))}"
        )


def group_size(q_BD: Tensor, d_MD: Tensor, *, at_least: int = 1) -> int:
    """Return G, the documents a query.

    Raises:
        InputError: if widths differ, M is no multiple of B, or G is too small.
    """
    matrix(queries=q_BD, documents=d_MD)
    if q_BD.shape[1] != d_MD.shape[1]:
        raise InputError(f"queries are {q_BD.shape[1]} wide, documents {d_MD.shape[1]}")
    size, rest = divmod(len(d_MD), len(q_BD))
    if rest or size < at_least:
        raise InputError(
            f"{len(d_MD)} documents for {len(q_BD)} queries; give the same number for each query, "
            f"at least {at_least}, positive first"
        )
    return size


def prepared(x: Tensor, similarity: Similarity) -> Tensor:
    """Return what the inner product is taken of: float32, of length 1 for the cosine."""
    choice("similarity", similarity, get_args(Similarity))
    return functional.normalize(full(x), dim=-1) if similarity == "cosine" else full(x)


def product(a_AD: Tensor, b_CD: Tensor) -> Tensor:
    """Inner products s_AC, never in half precision, also under autocast."""
    with torch.autocast(a_AD.device.type, enabled=False):
        return a_AD @ b_CD.mT


def own(q_BD: Tensor, d_MD: Tensor) -> Tensor:
    """Scores of every query with its own documents, s_BG."""
    return (q_BD[:, None] * d_MD.view(len(q_BD), -1, q_BD.shape[1])).sum(-1)


def targets(rows: int, group: int, device: torch.device) -> Tensor:
    """Column of each query's positive, i_B."""
    return torch.arange(rows, device=device) * group


def own_mask(rows: int, group: int, device: torch.device) -> Tensor:
    """Which documents belong to the query, o_BM."""
    return torch.eye(rows, dtype=torch.bool, device=device).repeat_interleave(group, dim=1)
