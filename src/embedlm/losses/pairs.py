"""Losses on single pairs and triplets.

Shapes: B pairs or queries, G documents for each query (its positive first), M = B * G documents,
D width.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from embedlm.losses._scores import (
    choice,
    false_negatives,
    full,
    group_size,
    own_columns,
    prepared,
    same_shape,
    shaped,
)

__all__ = ["cosine_mse", "triplet"]

Distance = Literal["euclidean", "cosine", "manhattan"]


def cosine_mse(a_BD: Tensor, b_BD: Tensor, labels_B: Tensor) -> Tensor:
    """Return mean_i (cos(a_i, b_i) - y_i)^2 (Reimers and Gurevych, arXiv 1908.10084).

    Raises:
        InputError: the shapes do not fit.
    """
    same_shape(a=a_BD, b=b_BD)
    shaped("labels", labels_B, (len(a_BD),))
    cosine_B = (prepared(a_BD, "cosine") * prepared(b_BD, "cosine")).sum(1)
    return functional.mse_loss(cosine_B, full(labels_B).to(cosine_B))


def triplet(
    q_BD: Tensor,
    d_MD: Tensor,
    *,
    margin: float = 5.0,
    distance: Distance = "euclidean",
    positives_BM: Tensor | None = None,
) -> Tensor:
    """Return mean max(0, dist(q, d+) - dist(q, d-) + margin) (Schroff et al., arXiv 1503.03832).

    The mean is over all hard negatives of all queries. It leaves out documents that `positives_BM`
    marks as positives of the query.

    Raises:
        InputError: the distance is not known, or the shapes do not fit.
    """
    group = group_size(q_BD, d_MD, at_least=2)
    choice("distance", distance, get_args(Distance))
    q_BD, d_MD = full(q_BD), full(d_MD)
    d_BGD, q_B1D = d_MD.view(len(q_BD), group, -1), q_BD[:, None]
    if distance == "cosine":
        distance_BG = 1 - (prepared(q_B1D, "cosine") * prepared(d_BGD, "cosine")).sum(-1)
    else:
        distance_BG = functional.pairwise_distance(
            q_B1D, d_BGD, p=2 if distance == "euclidean" else 1
        )
    loss_BG = functional.relu(distance_BG[:, :1] - distance_BG[:, 1:] + margin)
    if (dropped_BM := false_negatives(positives_BM, len(q_BD), len(d_MD))) is not None:
        kept_BG = ~own_columns(dropped_BM)[:, 1:]
        return (loss_BG * kept_BG).sum() / kept_BG.sum().clamp_min(1)
    return loss_BG.mean()
