"""Token states of a pack to one vector a sequence.

A pooling is a function `pool(h_TD, tokens) -> v_BD`; it sees only the tokens that the recipe pools.
To add one, write the function here and its line in `POOL`, and put its name into `PoolingKind` of
`embedlm.schema.recipe`.

Shapes: T tokens of the pack, N pooled tokens (sequence after sequence), B sequences, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "POOL",
    "Tokens",
    "cls",
    "kinds_of",
    "last",
    "max",
    "mean",
    "mean_sqrt_length",
    "pooled",
    "weighted_mean",
]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Which rows of h_TD are pooled, and into which sequence's vector."""

    index_N: Tensor
    """Rows of h_TD, those of one sequence together and in order."""
    sequence_N: Tensor
    """The sequence of each."""
    starts_B: Tensor
    """Where each sequence's tokens begin in index_N."""
    counts_B: Tensor
    """How many each sequence has; at least one."""
    weight_N: Tensor | None = None
    """Weights from corpus frequencies, where the recipe wants them."""
    weighted_total: bool = False
    """Divide by the sum of the weights (idf), not by the number of tokens (SIF)."""

    whole: bool = False
    """Whether index_N is 0, 1, 2, ..."""
    place_N: Tensor | None = None
    """The place of each in its row, from 0, where weights go by these."""

    def states(self, h_TD: Tensor) -> Tensor:
        """Return the pooled tokens' states in float32, h_ND."""
        if self.whole and len(self.index_N) == len(h_TD):
            return h_TD.float()
        return h_TD.index_select(0, self.index_N).float()

    def ranks_N(self) -> Tensor:
        """Return the rank of each token in its sequence, from 0."""
        every_N = torch.arange(len(self.index_N), device=self.index_N.device)
        return every_N - self.starts_B[self.sequence_N]

    def only(self, keep_N: Tensor) -> Tokens:
        """Return the tokens without some; a sequence of which none would be left keeps all."""
        kept_B = torch.zeros_like(self.counts_B).index_add(0, self.sequence_N, keep_N.long())
        keep_N = keep_N | (kept_B == 0)[self.sequence_N]
        counts_B = torch.where(kept_B == 0, self.counts_B, kept_B)
        return Tokens(
            self.index_N[keep_N],
            self.sequence_N[keep_N],
            counts_B.cumsum(0) - counts_B,
            counts_B,
            None if self.weight_N is None else self.weight_N[keep_N],
            self.weighted_total,
            place_N=None if self.place_N is None else self.place_N[keep_N],
        )

    def sum(self, x_ND: Tensor) -> Tensor:
        """Sum over each sequence's tokens, x_BD."""
        return x_ND.new_zeros(len(self.starts_B), x_ND.shape[1]).index_add(0, self.sequence_N, x_ND)


def last(h_TD: Tensor, tokens: Tokens) -> Tensor:
    """The last pooled token's state."""
    rows_B = tokens.index_N[tokens.starts_B + tokens.counts_B - 1]
    return h_TD[rows_B].float()


def cls(h_TD: Tensor, tokens: Tokens) -> Tensor:
    """The first pooled token's state."""
    return h_TD[tokens.index_N[tokens.starts_B]].float()


def mean(h_TD: Tensor, tokens: Tokens) -> Tensor:
    """sum_i w_i h_i / S, where w is 1 unless the recipe weighs tokens by frequency."""
    h_ND = tokens.states(h_TD)
    if tokens.weight_N is None:
        return tokens.sum(h_ND) / tokens.counts_B[:, None]
    weight_N1 = tokens.weight_N[:, None].to(h_ND)
    total_B1 = tokens.counts_B[:, None].to(h_ND)
    if tokens.weighted_total:
        total_B1 = tokens.sum(weight_N1).clamp_min(1e-12)
    return tokens.sum(h_ND * weight_N1) / total_B1


def weighted_mean(h_TD: Tensor, tokens: Tokens) -> Tensor:
    """sum_i i h_i / sum_i i with i = 1..S: later tokens weigh more (SGPT, arXiv 2202.08904).

    Where the tokens have places in their rows, i is the place, from 1.
    """
    h_ND = tokens.states(h_TD)
    if tokens.place_N is not None:
        place_N1 = (tokens.place_N + 1).to(h_ND.dtype)[:, None]
        return tokens.sum(h_ND * place_N1) / tokens.sum(place_N1)
    rank_N = tokens.ranks_N() + 1
    count_B = tokens.counts_B.to(h_ND.dtype)
    total_B1 = (count_B * (count_B + 1) / 2)[:, None]
    return tokens.sum(h_ND * rank_N[:, None].to(h_ND.dtype)) / total_B1


def max(h_TD: Tensor, tokens: Tokens) -> Tensor:
    """The largest value of each dimension."""
    h_ND = tokens.states(h_TD)
    out_BD = h_ND.new_full((len(tokens.starts_B), h_ND.shape[1]), -torch.inf)
    index_ND = tokens.sequence_N[:, None].expand_as(h_ND)
    return out_BD.scatter_reduce(0, index_ND, h_ND, "amax", include_self=False)


def mean_sqrt_length(h_TD: Tensor, tokens: Tokens) -> Tensor:
    """The mean times the root of the sum of the weights: sum_i w_i h_i / sqrt(S)."""
    total_B = tokens.counts_B.to(torch.float32)
    if tokens.weight_N is not None and tokens.weighted_total:
        total_B = tokens.sum(tokens.weight_N[:, None].float())[:, 0].clamp_min(1e-12)
    return mean(h_TD, tokens) * total_B.sqrt()[:, None]


POOL: dict[str, Callable[[Tensor, Tokens], Tensor]] = {
    "last": last,
    "mean": mean,
    "weighted_mean": weighted_mean,
    "cls": cls,
    "max": max,
    "mean_sqrt_length": mean_sqrt_length,
}


def kinds_of(kind: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the poolings that a recipe names, whose vectors are joined in this order."""
    return (kind,) if isinstance(kind, str) else kind


SINGLE = frozenset({"last", "cls"})
"""Poolings that read one token of a sequence."""


def pooled(
    h_TD: Tensor, tokens: Tokens, kind: str | tuple[str, ...], keep_N: Tensor | None = None
) -> Tensor:
    """Return one vector a sequence; of several poolings, one after another.

    `keep_N` tells which of the tokens are pooled where several are (the others are sinks).
    """
    gathered = tokens if keep_N is None else tokens.only(keep_N)
    vectors = [POOL[one](h_TD, tokens if one in SINGLE else gathered) for one in kinds_of(kind)]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)
