"""Contrastive losses.

Shapes: B queries, G documents a query (positive first), M = B * G documents, D width, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from embedlm.errors import InputError
from embedlm.losses._scores import (
    Similarity,
    choice,
    group_size,
    own,
    own_mask,
    positive,
    prepared,
    product,
    targets,
)

__all__ = ["improved_info_nce", "info_nce"]

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
Partition = Literal["joint", "per_direction"]
Hardness = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]

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
    hardness: Hardness | None = None,
    hardness_strength: float = 0.0,
    false_negative_margin: float | None = None,
) -> Tensor:
    """-mean_i log(e^{s(q_i, d_i+) / t} / Z_i), van den Oord et al., arXiv 1807.03748.

    Z_i sums e^{s/t} over all documents of the batch, or over the query's own. Further `directions`
    add their candidates to Z_i (`joint`) or have a Z of their own, and the logs are averaged
    (`per_direction`; with "doc_to_query" the symmetric loss of arXiv 2310.19923).

    `hardness` adds hardness_strength * stop_grad(s) to the logits of those negatives (Lan et al.,
    arXiv 2503.04812, equation 5; hard_negatives: EmbeddingGemma, arXiv 2509.20354).
    `false_negative_margin` drops candidates with s > s(q_i, d_i+) + margin (Qwen3 Embedding,
    arXiv 2506.05176).

    Raises:
        InputError: for shapes or options that do not fit together.
    """
    group = group_size(q_BD, d_MD, at_least=2 if own_group_only else 1)
    positive(temperature=temperature)
    directions = tuple(dict.fromkeys(directions))
    _check(directions, partition, hardness, hardness_strength, own_group_only)
    q_BD, d_MD = prepared(q_BD, similarity), prepared(d_MD, similarity)
    scores: dict[Direction, Tensor]
    if own_group_only:
        scores = {"query_to_doc": own(q_BD, d_MD)}
        mine = torch.ones_like(scores["query_to_doc"], dtype=torch.bool)
        column_B = torch.zeros(len(q_BD), dtype=torch.long, device=q_BD.device)
    else:
        mine = own_mask(len(q_BD), group, q_BD.device)
        scores = {name: _block(name, q_BD, d_MD, mine) for name in directions}
        column_B = targets(len(q_BD), group, q_BD.device)
    first = torch.zeros_like(mine).scatter(1, column_B[:, None], True)
    positive_B = scores["query_to_doc"][first]
    logits = {name: block / temperature for name, block in scores.items()}
    if hardness is not None:
        chosen = _harder(hardness, mine, first)
        penalty = hardness_strength * scores["query_to_doc"].detach()
        logits["query_to_doc"] = logits["query_to_doc"] + penalty * chosen
    if false_negative_margin is not None:
        limit_B1 = positive_B.detach()[:, None] + false_negative_margin
        for name, block in scores.items():
            dropped = (block.detach() > limit_B1) & ~_is_positive(name, first)
            logits[name] = logits[name].masked_fill(dropped, -torch.inf)
    return _entropy(logits, column_B, partition)


def improved_info_nce(
    q_BD: Tensor,
    d_MD: Tensor,
    *,
    temperature: float = 0.05,
    similarity: Similarity = "cosine",
    false_negative_margin: float | None = None,
) -> Tensor:
    """InfoNCE with one Z over all four directions (GTE, Li et al., arXiv 2308.03281).

    Z_i sums e^{s/t} of q_i with all documents and all other queries, and of d_i+ with all queries
    and all documents that are not of query i.

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
    )


def _block(name: Direction, q_BD: Tensor, d_MD: Tensor, mine: Tensor) -> Tensor:
    """Scores of one direction, a row a query, -inf where a text would meet itself."""
    positive_BD = d_MD[:: len(d_MD) // len(q_BD)]
    if name == "query_to_doc":
        return product(q_BD, d_MD)
    if name == "doc_to_query":
        return product(positive_BD, q_BD)
    if name == "query_to_query":
        itself = torch.eye(len(q_BD), dtype=torch.bool, device=q_BD.device)
        return product(q_BD, q_BD).masked_fill(itself, -torch.inf)
    return product(positive_BD, d_MD).masked_fill(mine, -torch.inf)


def _harder(hardness: Hardness, mine: Tensor, first: Tensor) -> Tensor:
    """Which negatives weigh more, c_BC."""
    if hardness == "in_batch_negatives":
        return ~mine
    return mine & ~first if hardness == "hard_negatives" else ~first


def _is_positive(name: str, first: Tensor) -> Tensor:
    """Which scores of a direction are a query's with its positive."""
    if name == "query_to_doc":
        return first
    pair = torch.eye(len(first), dtype=torch.bool, device=first.device)
    return pair if name == "doc_to_query" else torch.zeros_like(pair[:, :1])


def _entropy(logits: dict[Direction, Tensor], column_B: Tensor, partition: Partition) -> Tensor:
    """Cross entropy to the positive: a softmax over all blocks, or the mean of one for each."""
    forward = logits.pop("query_to_doc")
    if partition == "joint":
        return functional.cross_entropy(torch.cat((forward, *logits.values()), dim=1), column_B)
    loss = functional.cross_entropy(forward, column_B)
    for block in logits.values():  # only doc_to_query has a positive: the query of the same row
        loss = loss + functional.cross_entropy(block, targets(len(block), 1, block.device))
    return loss / (1 + len(logits))


def _check(
    directions: Sequence[str],
    partition: str,
    hardness: str | None,
    hardness_strength: float,
    own_group_only: bool,
) -> None:
    for name in directions:
        choice("a direction", name, _ALL)
    choice("partition", partition, get_args(Partition))
    choice("hardness", hardness, (None, *get_args(Hardness)))
    if "query_to_doc" not in directions:
        raise InputError(f"directions are {directions}; query_to_doc holds the positive: add it")
    same = {"query_to_query", "doc_to_doc"} & set(directions)
    if partition == "per_direction" and same:
        raise InputError(f"{sorted(same)} hold no positive; use partition='joint'")
    if own_group_only and len(directions) > 1:
        raise InputError("own_group_only scores queries with documents; leave directions alone")
    if hardness_strength < 0 or (hardness is None) != (hardness_strength == 0):
        raise InputError(
            f"hardness is {hardness!r} with strength {hardness_strength}; "
            "give both, the strength above 0, or neither"
        )
