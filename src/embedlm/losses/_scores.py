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
    """Return x in float32, or in float64 if it is."""
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
    """Return G, the number of documents per query.

    Raises:
        InputError: the widths differ, M is not a multiple of B, or G is too small.
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
    """Return x in float32, scaled to unit length if the similarity is the cosine."""
    choice("similarity", similarity, get_args(Similarity))
    return functional.normalize(full(x), dim=-1) if similarity == "cosine" else full(x)


def product(a_AD: Tensor, b_CD: Tensor) -> Tensor:
    """Return the inner products s_AC, in full precision even under autocast."""
    with torch.autocast(a_AD.device.type, enabled=False):
        return a_AD @ b_CD.mT


def own(q_BD: Tensor, d_MD: Tensor) -> Tensor:
    """Return the scores of every query with its own documents, s_BG."""
    return (q_BD[:, None] * d_MD.view(len(q_BD), -1, q_BD.shape[1])).sum(-1)


def own_columns(x_BM: Tensor) -> Tensor:
    """Return the entries of each query's own documents, x_BG."""
    rows = torch.arange(len(x_BM), device=x_BM.device)
    return x_BM.view(len(x_BM), len(x_BM), -1)[rows, rows]


def equal_queries(equal_queries_BB: Tensor | None, rows: int) -> Tensor | None:
    """Return the mask of queries that are no negatives of each other.

    Raises:
        InputError: the mask does not have the shape (rows, rows).
    """
    if equal_queries_BB is None:
        return None
    shaped("equal_queries_BB", equal_queries_BB, (rows, rows))
    return equal_queries_BB.bool()


def false_negatives(positives_BM: Tensor | None, rows: int, columns: int) -> Tensor | None:
    """Return the mask of the positives that must not count as negatives, f_BM.

    Only the first of a query's own documents stays: it is the target.

    Raises:
        InputError: the mask does not have the shape (rows, columns).
    """
    if positives_BM is None:
        return None
    shaped("positives_BM", positives_BM, (rows, columns))
    positives_BM = positives_BM.bool()
    target_B1 = targets(rows, columns // rows, positives_BM.device)[:, None]
    return positives_BM.scatter(1, target_B1, False)


def without(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return scores with -inf where the mask is true: such candidates leave the softmax."""
    return scores if mask is None else scores.masked_fill(mask, -torch.inf)


def finite_log_softmax(logits: Tensor) -> Tensor:
    """Return the log-softmax of each row, 0 for candidates that left it (logit -inf)."""
    return logits.log_softmax(1).masked_fill(logits == -torch.inf, 0)


def soft_cross_entropy(logits: Tensor, p: Tensor) -> Tensor:
    """Return the mean over rows of -sum p log softmax(logits)."""
    return -(p * finite_log_softmax(logits)).sum(1).mean()


def targets(rows: int, group: int, device: torch.device) -> Tensor:
    """Return the column of each query's positive, i_B."""
    return torch.arange(rows, device=device) * group


def own_mask(rows: int, group: int, device: torch.device) -> Tensor:
    """Return the mask of the documents that belong to each query, o_BM."""
    return torch.eye(rows, dtype=torch.bool, device=device).repeat_interleave(group, dim=1)
