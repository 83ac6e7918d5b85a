"""Contrastive losses.

Shapes: B queries, G documents a query (positive first), M = B * G documents, D width, C candidates,
R queries of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from embedlm.errors import InputError
from embedlm.losses._scores import (
    Similarity,
    choice,
    equal_queries,
    false_negatives,
    group_size,
    own,
    own_columns,
    positive,
    prepared,
    product,
    without,
)

__all__ = ["improved_info_nce", "info_nce"]

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
Partition = Literal["joint", "per_direction"]
WeightedNegatives = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]

ROWS = 1024
"""Number of queries whose scores are in memory at once."""
_ALL: tuple[Direction, ...] = get_args(Direction)


def info_nce(
    q_BD: Tensor,
    d_MD: Tensor,
    *,
    temperature: float = 0.05,
    similarity: Similarity = "cosine",
    directions: Sequence[Direction] = ("query_to_doc",),
    partition: Partition = "joint",
    own_group_only: bool = False,
    hardness: WeightedNegatives | None = None,
    hardness_strength: float = 0.0,
    false_negative_margin: float | None = None,
    positives_BM: Tensor | None = None,
    equal_queries_BB: Tensor | None = None,
) -> Tensor:
    """-mean_i log(e^{s(q_i, d_i+) / t} / Z_i), van den Oord et al., arXiv 1807.03748.

    Z_i sums e^{s/t} over all documents of the batch, or over the query's own. Further `directions`
    add their candidates to Z_i (`joint`) or have a Z of their own, and the logs are averaged
    (`per_direction`; with "doc_to_query" the symmetric loss of arXiv 2310.19923).

    `hardness` adds hardness_strength * stop_grad(s) to the logits of those negatives (Lan et al.,
    arXiv 2503.04812, equation 5; hard_negatives: EmbeddingGemma, arXiv 2509.20354).
    `false_negative_margin` drops candidates with s > s(q_i, d_i+) + margin (Qwen3 Embedding,
    arXiv 2506.05176).

    `positives_BM` is true where document m is known to be a positive of query b, and
    `equal_queries_BB` where two queries are the same text or a positive of each other. No such text
    is a negative, in any direction; the target of a query always counts.

    Raises:
        InputError: for shapes or options that do not fit together.
    """
    group = group_size(q_BD, d_MD, at_least=2 if own_group_only else 1)
    positive(temperature=temperature)
    directions = _checked(directions, partition, hardness, hardness_strength, own_group_only)
    q_BD, d_MD = prepared(q_BD, similarity), prepared(d_MD, similarity)
    how = _Options(
        group,
        temperature,
        directions,
        partition,
        own_group_only,
        hardness,
        hardness_strength,
        false_negative_margin,
        false_negatives(positives_BM, len(q_BD), len(d_MD)),
        equal_queries(equal_queries_BB, len(q_BD)),
    )
    return _summed(how, q_BD, d_MD) / len(q_BD)


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of `info_nce`."""

    group: int
    temperature: float
    directions: tuple[Direction, ...]
    partition: Partition
    own_group_only: bool
    hardness: WeightedNegatives | None
    hardness_strength: float
    false_negative_margin: float | None
    dropped_BM: Tensor | None
    """Documents that are positives of a query, without its target."""
    equal_queries_BB: Tensor | None


def _summed(how: _Options, q_BD: Tensor, d_MD: Tensor) -> Tensor:
    """Return the loss of all queries, summed block by block."""
    parts = [
        _summed_in_block(how, q_BD, d_MD, start, min(start + ROWS, len(q_BD)))
        for start in range(0, len(q_BD), ROWS)
    ]
    return torch.stack(parts).sum()


def _summed_in_block(how: _Options, q_BD: Tensor, d_MD: Tensor, start: int, stop: int) -> Tensor:
    """Return the summed loss of a block of queries, without keeping their scores for the gradient.

    The scores of a large batch would take more memory than the network, so each block is computed
    again in the backward pass.
    """
    if len(q_BD) <= ROWS or not torch.is_grad_enabled():
        return _of_queries(how, q_BD, d_MD, start, stop)
    loss: Tensor = checkpoint(
        _of_queries, how, q_BD, d_MD, start, stop, use_reentrant=False, preserve_rng_state=False
    )
    return loss


def _of_queries(how: _Options, q_BD: Tensor, d_MD: Tensor, start: int, stop: int) -> Tensor:
    """Return the summed loss of queries start to stop; R is their number."""
    rows_R = torch.arange(start, stop, device=q_BD.device)
    scores: dict[Direction, Tensor]
    if how.own_group_only:
        d_XD = d_MD[start * how.group : stop * how.group]
        scores = {"query_to_doc": own(q_BD[start:stop], d_XD)}
        mine_RC = torch.ones_like(scores["query_to_doc"], dtype=torch.bool)
        column_R = torch.zeros_like(rows_R)
    else:
        owner_M = torch.arange(len(d_MD), device=q_BD.device) // how.group
        mine_RC = owner_M == rows_R[:, None]
        scores = {n: _block(n, q_BD, d_MD, mine_RC, rows_R) for n in how.directions}
        column_R = rows_R * how.group
    first_RC = torch.zeros_like(mine_RC).scatter(1, column_R[:, None], True)
    positive_R = scores["query_to_doc"][first_RC]
    logits = {name: block / how.temperature for name, block in scores.items()}
    if how.hardness is not None:
        chosen = _harder(how.hardness, mine_RC, first_RC)
        penalty = how.hardness_strength * scores["query_to_doc"].detach()
        logits["query_to_doc"] = logits["query_to_doc"] + penalty * chosen
    if how.false_negative_margin is not None:
        limit_R1 = positive_R.detach()[:, None] + how.false_negative_margin
        itself_RB = torch.arange(len(q_BD), device=q_BD.device) == rows_R[:, None]
        for name, block in scores.items():
            dropped = (block.detach() > limit_R1) & ~_is_positive(name, first_RC, itself_RB)
            logits[name] = without(logits[name], dropped)
    for name, block in logits.items():
        logits[name] = without(block, _known(how, name, rows_R))
    return _entropy(logits, column_R, rows_R, how.partition)


def improved_info_nce(
    q_BD: Tensor,
    d_MD: Tensor,
    *,
    temperature: float = 0.05,
    similarity: Similarity = "cosine",
    false_negative_margin: float | None = None,
    positives_BM: Tensor | None = None,
    equal_queries_BB: Tensor | None = None,
) -> Tensor:
    """InfoNCE with one Z over all four directions (GTE, Li et al., arXiv 2308.03281).

    Z_i sums e^{s/t} of q_i with all documents and all other queries, and of d_i+ with all queries
    and all documents that are not of query i. The masks are those of `info_nce`.

    Raises:
        InputError: for shapes or options that do not fit together.
    """
    return info_nce(
        q_BD,
        d_MD,
        temperature=temperature,
        similarity=similarity,
        directions=_ALL,
        false_negative_margin=false_negative_margin,
        positives_BM=positives_BM,
        equal_queries_BB=equal_queries_BB,
    )


def _block(name: Direction, q_BD: Tensor, d_MD: Tensor, mine_RM: Tensor, rows_R: Tensor) -> Tensor:
    """Return the scores of one direction, one row per query, -inf for a text with itself."""
    if name == "query_to_doc":
        return product(q_BD[rows_R], d_MD)
    positive_RD = d_MD[rows_R * (len(d_MD) // len(q_BD))]
    if name == "doc_to_query":
        return product(positive_RD, q_BD)
    if name == "query_to_query":
        itself_RB = torch.arange(len(q_BD), device=q_BD.device) == rows_R[:, None]
        return product(q_BD[rows_R], q_BD).masked_fill(itself_RB, -torch.inf)
    return product(positive_RD, d_MD).masked_fill(mine_RM, -torch.inf)


def _known(how: _Options, name: Direction, rows_R: Tensor) -> Tensor | None:
    """Return the mask of the candidates of one direction that are known not to be negatives."""
    if name == "query_to_query":
        return None if how.equal_queries_BB is None else how.equal_queries_BB[rows_R]
    if how.dropped_BM is None:
        return None
    if name == "doc_to_query":  # the target's column is already clear for the query itself
        return how.dropped_BM[:, rows_R * how.group].mT
    return own_columns(how.dropped_BM)[rows_R] if how.own_group_only else how.dropped_BM[rows_R]


def _harder(hardness: WeightedNegatives, mine: Tensor, first: Tensor) -> Tensor:
    """Return the mask of the negatives that get a larger logit, c_BC."""
    if hardness == "in_batch_negatives":
        return ~mine
    return mine & ~first if hardness == "hard_negatives" else ~first


def _is_positive(name: str, first_RM: Tensor, itself_RB: Tensor) -> Tensor:
    """Return the mask of a direction's scores of a query with its positive."""
    if name == "query_to_doc":
        return first_RM
    return itself_RB if name == "doc_to_query" else torch.zeros_like(itself_RB[:, :1])


def _entropy(
    logits: dict[Direction, Tensor], column_R: Tensor, rows_R: Tensor, partition: Partition
) -> Tensor:
    """Return the cross entropy: of one softmax over all blocks, or the mean of one for each."""
    forward = logits.pop("query_to_doc")
    if partition == "joint":
        every = torch.cat((forward, *logits.values()), dim=1) if logits else forward
        return functional.cross_entropy(every, column_R, reduction="sum")
    loss = functional.cross_entropy(forward, column_R, reduction="sum")
    for block in logits.values():  # only doc_to_query has a positive: the query of the same row
        loss = loss + functional.cross_entropy(block, rows_R, reduction="sum")
    return loss / (1 + len(logits))


def _checked(
    directions: Sequence[Direction],
    partition: str,
    hardness: str | None,
    hardness_strength: float,
    own_group_only: bool,
) -> tuple[Direction, ...]:
    """Return the directions, each once; refuse options that do not fit together."""
    directions = tuple(dict.fromkeys(directions))
    for name in directions:
        choice("a direction", name, _ALL)
    choice("partition", partition, get_args(Partition))
    choice("hardness", hardness, (None, *get_args(WeightedNegatives)))
    if "query_to_doc" not in directions:
        raise InputError(f"directions are {directions}; query_to_doc holds the positive: add it")
    same = {"query_to_query", "doc_to_doc"} & set(directions)
    if partition == "per_direction" and same:
        raise InputError(f"{sorted(same)} hold no positive; use partition='joint'")
    if own_group_only and len(directions) > 1:
        raise InputError(
            "own_group_only scores queries with documents; leave out the other directions"
        )
    if hardness_strength < 0 or (hardness is None) != (hardness_strength == 0):
        raise InputError(
            f"hardness is {hardness!r} with strength {hardness_strength}; "
            "give both, the strength above 0, or neither"
        )
    return directions
