"""What several heads gave for the same texts, and the scores between two of those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from embedlm.errors import InputError
from embedlm.readout.heads import HEADS
from embedlm.schema.recipe import Recipe

__all__ = ["Embeddings", "as_embeddings", "scores"]

Array = npt.NDArray[Any]


class Embeddings:
    """The outputs of several heads for the same n texts."""

    def __init__(
        self,
        dense: Array | None = None,
        sparse: csr_matrix | None = None,
        multi_vector: list[npt.NDArray[np.float32]] | None = None,
        **others: Any,
    ) -> None:
        """Hold the outputs of the heads that are given, by name."""
        named = {"dense": dense, "sparse": sparse, "multi_vector": multi_vector, **others}
        unknown = [name for name in others if name not in HEADS]
        if unknown:
            raise InputError(f"{unknown[0]!r} is not a head; allowed: {', '.join(HEADS)}")
        self._values = {name: value for name, value in named.items() if value is not None}

    @property
    def dense(self) -> Array | None:
        """One vector a text, (n, D)."""
        return self._values.get("dense")

    @property
    def sparse(self) -> csr_matrix | None:
        """Weights over the vocabulary, (n, V)."""
        return self._values.get("sparse")

    @property
    def multi_vector(self) -> list[npt.NDArray[np.float32]] | None:
        """One array a text, (tokens, E)."""
        return self._values.get("multi_vector")

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads that there are outputs of."""
        return tuple(self._values)

    def __getitem__(self, head: str) -> Any:
        """Return the output of a head by its name."""
        if head not in self._values:
            raise InputError(
                f"there is no output of the head {head!r}; there are: "
                f"{', '.join(self._values) or 'none'}"
            )
        return self._values[head]

    def __len__(self) -> int:
        for name, value in self._values.items():
            return HEADS[name].count(value)
        return 0

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} texts: {', '.join(self._values)})"


def as_embeddings(value: Any) -> Embeddings:
    """Return any kind of vectors as `Embeddings`."""
    if isinstance(value, Embeddings):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    for name, head in HEADS.items():
        if name != "dense" and head.holds(value):
            return Embeddings(**{name: value})
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
    left, right = as_embeddings(a), as_embeddings(b)
    common = [name for name in HEADS if name in left.heads and name in right.heads]
    names = [heads] if isinstance(heads, str) else list(heads or common)
    missing = [name for name in names if name not in common]
    if missing or not names:
        raise InputError(
            f"no {missing[0] if missing else 'common'} vectors on both sides; "
            f"there are: {', '.join(common) or 'none'}"
        )
    shares = list(weights) if weights is not None else [1.0] * len(names)
    if len(shares) != len(names):
        raise InputError(f"{len(shares)} weights were given for {len(names)} heads")
    total = sum(
        share * HEADS[name].score(left[name], right[name], recipe, pairwise=pairwise)
        for name, share in zip(names, shares, strict=True)
    )
    return np.asarray(total, dtype=np.float32)
