"""What several heads gave for the same texts, and the scores between two of those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from embedlm.errors import InputError
from embedlm.readout import similarity
from embedlm.schema.recipe import MultiVector, Recipe

__all__ = ["Embeddings", "as_embeddings", "scores"]

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Embeddings:
    """What several heads gave for the same texts."""

    dense: Array | None = None
    """(n, D)."""
    sparse: csr_matrix | None = None
    """(n, V)."""
    multi_vector: list[npt.NDArray[np.float32]] | None = None
    """n arrays (tokens, D)."""

    def __len__(self) -> int:
        if self.dense is not None:
            return len(self.dense)
        if self.sparse is not None:
            return int(self.sparse.shape[0])
        return len(self.multi_vector or ())


def as_embeddings(value: Any) -> Embeddings:
    """Return any kind of vectors as `Embeddings`."""
    if isinstance(value, Embeddings):
        return value
    if isinstance(value, list) and value and all(np.ndim(v) == 2 for v in value):
        return Embeddings(multi_vector=value)
    if hasattr(value, "tocsr"):
        return Embeddings(sparse=value.tocsr())
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    return Embeddings(dense=np.atleast_2d(np.asarray(value)))


def scores(
    a: Any,
    b: Any,
    heads: Sequence[str] | str | None,
    weights: Sequence[float] | None,
    *,
    recipe: Recipe,
    pairwise: bool,
) -> npt.NDArray[np.float32]:
    """Return the weighted sum of the heads' scores, (n, m) or, for pairs, (n,).

    The recipe says whether dense vectors are compared by cosine or dot, and whether MaxSim is a
    sum or a mean over the query's tokens.

    Raises:
        InputError: a head that one side lacks, or another number of weights than heads.
    """
    mean = any(isinstance(head, MultiVector) and head.score == "mean" for head in recipe.heads)
    left, right = as_embeddings(a), as_embeddings(b)
    present = [
        name
        for name in ("dense", "sparse", "multi_vector")
        if getattr(left, name) is not None and getattr(right, name) is not None
    ]
    names = [heads] if isinstance(heads, str) else list(heads or present)
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise InputError(
            f"no {missing[0] if missing else 'common'} vectors on both sides; "
            f"there are: {', '.join(present) or 'none'}"
        )
    shares = list(weights) if weights is not None else [1.0] * len(names)
    if len(shares) != len(names):
        raise InputError(f"{len(shares)} weights were given for {len(names)} heads")
    total = sum(
        share
        * similarity.score(
            name,
            getattr(left, name),
            getattr(right, name),
            dense=recipe.similarity,
            pairwise=pairwise,
            mean=mean,
        )
        for name, share in zip(names, shares, strict=True)
    )
    return np.asarray(total, dtype=np.float32)
