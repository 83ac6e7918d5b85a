"""The dense head: one pooled vector a text.

Shapes: B texts of a pack, n texts of a call, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from embedlm.readout import similarity
from embedlm.readout.head import Floats, Head, Indices
from embedlm.readout.pooling import pooled
from embedlm.schema.heads import Dense

if TYPE_CHECKING:
    from embedlm.readout.readout import Readout
    from embedlm.readout.states import PackStates
    from embedlm.schema.recipe import Recipe

__all__ = ["DenseHead"]


class _Sums:
    def __init__(self, count: int, width: int) -> None:
        self.vector_nD = np.zeros((count, width), np.float32)

    def add(self, target_B: Indices, share_B: Floats, output: Tensor) -> None:
        vector_BD = share_B[:, None] * output.cpu().numpy()
        if len(np.unique(target_B)) == len(target_B):
            self.vector_nD[target_B] += vector_BD
        else:  # several variants of one text, say
            np.add.at(self.vector_nD, target_B, vector_BD)

    def value(self, order_n: Indices) -> Floats:
        return self.vector_nD[order_n]


class DenseHead(Head[Dense]):
    """Pools the token states and projects the result, where the checkpoint has such layers."""

    kind = "dense"

    def read(self, readout: Readout, states: PackStates) -> Tensor:
        """Return the texts' vectors on the device, v_BD."""
        return self.gradient_rows(readout, states, 0)

    def gathered(self, readout: Readout, states: PackStates) -> Tensor:
        """Return the pooled states, (B, kinds)."""
        tokens = readout.pooled_tokens(states)
        return pooled(states.h_TD, tokens, readout.pooling.kind, readout.first_left_out(states))

    def collector(self, readout: Readout, count: int) -> _Sums:
        """Return a collector that adds vectors up by their shares."""
        return _Sums(count, self.columns(readout, 0))

    def gradient_rows(self, readout: Readout, states: PackStates, longest: int) -> Tensor:
        """Return the texts' vectors, v_BD."""
        v_BD = readout.pool(states)
        projection = readout.parts.projection if self.options.projection != "none" else None
        if projection is None:
            return v_BD
        projected_BD: Tensor = projection(v_BD)
        return projected_BD

    def columns(self, readout: Readout, longest: int) -> int:
        """Return the width of a vector."""
        projection = readout.parts.projection if self.options.projection != "none" else None
        return readout.pooled_width if projection is None else projection.out_features

    @staticmethod
    def holds(value: Any) -> bool:
        """Tell whether a value is an array of vectors."""
        return getattr(value, "ndim", 0) in (1, 2) and not hasattr(value, "tocsr")

    @staticmethod
    def count(value: Any) -> int:
        """Return the number of vectors."""
        return len(value)

    @staticmethod
    def finite(value: Any) -> npt.NDArray[np.bool_]:
        """Tell for each vector whether all its entries are finite."""
        return np.asarray(np.isfinite(value).all(axis=1))

    @staticmethod
    def score(a: Any, b: Any, recipe: Recipe, *, pairwise: bool) -> Floats:
        """Compare as the recipe says: by cosine, dot product or a distance below zero."""
        return similarity.DENSE[recipe.similarity](a, b, pairwise=pairwise)
