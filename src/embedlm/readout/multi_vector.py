"""The multi-vector head: one vector a token, for late interaction.

v_t = W h_t, normalised: ColBERT (Khattab and Zaharia, SIGIR 2020, arXiv:2004.12832).

Shapes: T tokens of a pack, N tokens with a vector, B texts, L longest text, D width of a state, E
width of a token's vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from embedlm.readout import similarity
from embedlm.readout.head import Floats, Head, Indices
from embedlm.readout.pooling import Tokens
from embedlm.schema.heads import MultiVector

if TYPE_CHECKING:
    from embedlm.readout.readout import Readout
    from embedlm.readout.states import PackStates
    from embedlm.schema.recipe import Recipe

__all__ = ["MultiVectorHead"]


class _Rows:
    def __init__(self, count: int, width: int) -> None:
        self.vectors = [np.empty((0, width), np.float32)] * count

    def add(self, target_B: Indices, share_B: Floats, output: list[Floats]) -> None:
        for target, vectors in zip(target_B.tolist(), output, strict=True):
            self.vectors[target] = vectors

    def value(self, order_n: Indices) -> list[Floats]:
        return [self.vectors[target] for target in order_n.tolist()]


class MultiVectorHead(Head[MultiVector]):
    """Keeps a vector for each token, through the checkpoint's layer where it has one."""

    kind = "multi_vector"
    averages = False

    @property
    def over(self) -> Any:
        """The segments whose tokens have a vector."""
        return self.options.over

    def read(self, readout: Readout, states: PackStates) -> list[Floats]:
        """Return each text's token vectors, (tokens, E), without those of skipped tokens."""
        picked = states.picked(self.options.over)
        h_NE = self._vectors(readout, states.h_TD, states.tokens(self.options.over))
        vectors = np.split(h_NE.cpu().numpy(), np.cumsum(picked.count_B)[:-1])
        return [
            text_vectors[stays]
            for text_vectors, stays in zip(vectors, self._stays(readout, states), strict=True)
        ]

    def _stays(self, readout: Readout, states: PackStates) -> list[npt.NDArray[np.bool_]]:
        """Tell for each token of each text whether it has a vector; a text keeps some."""
        skipped = readout.token_ids(self.options.skip) if states.role != "query" else ()
        found = []
        for ids in states.picked(self.options.over).ids_by_text():
            stays = ~np.isin(ids, skipped)
            found.append(stays if stays.any() else np.ones_like(stays))
        return found

    def gathered(self, readout: Readout, states: PackStates) -> Tensor:
        """Return the states of the tokens that have a vector, (N, 1)."""
        h_N1 = states.tokens(self.options.over).states(states.h_TD)
        return h_N1[torch.from_numpy(np.concatenate(self._stays(readout, states)))]

    def collector(self, readout: Readout, count: int) -> _Rows:
        """Return a collector of arrays."""
        return _Rows(count, self.width(readout))

    def gradient_rows(self, readout: Readout, states: PackStates, longest: int) -> Tensor:
        """Return each text's token vectors, filled up with zeros, as one row: L * E wide.

        Tokens without a vector are zeros, too.
        """
        tokens = states.tokens(self.options.over)
        h_NE = self._vectors(readout, states.h_TD, tokens)
        if self.options.skip:
            stays_N = torch.from_numpy(np.concatenate(self._stays(readout, states)))
            h_NE = h_NE.where(stays_N.to(h_NE.device)[:, None], 0)
        filled_BLE = h_NE.new_zeros(len(tokens.counts_B), longest, h_NE.shape[1])
        filled_BLE = filled_BLE.index_put((tokens.sequence_N, tokens.ranks_N()), h_NE)
        return filled_BLE.flatten(1)

    def columns(self, readout: Readout, longest: int) -> int:
        """Return the width of a text's vectors in a row."""
        return longest * self.width(readout)

    def width(self, readout: Readout) -> int:
        """Return the width E of a token's vector."""
        layer = self._layer(readout)
        return readout.backbone.dim if layer is None else int(layer.out_features)

    def _layer(self, readout: Readout) -> Any:
        layers = readout.parts.token_layers
        return layers.vector if layers is not None and self.options.projection == "auto" else None

    def _vectors(self, readout: Readout, h_TD: Tensor, tokens: Tokens) -> Tensor:
        h_NE = tokens.states(h_TD)
        layer = self._layer(readout)
        if layer is not None:
            h_NE = layer(h_NE)
        return functional.normalize(h_NE, dim=-1) if self.options.normalize else h_NE

    @staticmethod
    def holds(value: Any) -> bool:
        """Tell whether a value is a list of (tokens, E) arrays."""
        return isinstance(value, list) and bool(value) and all(np.ndim(v) == 2 for v in value)

    @staticmethod
    def count(value: Any) -> int:
        """Return the number of texts."""
        return len(value)

    @staticmethod
    def finite(value: Any) -> npt.NDArray[np.bool_]:
        """Tell for each text whether all its token vectors are finite."""
        return np.array([bool(np.isfinite(vectors).all()) for vectors in value], dtype=bool)

    @staticmethod
    def score(a: Any, b: Any, recipe: Recipe, *, pairwise: bool) -> Floats:
        """Compare by MaxSim: the sum or, where the recipe says so, the mean over query tokens."""
        options = next((h for h in recipe.heads if isinstance(h, MultiVector)), MultiVector())
        compare = similarity.maxsim_pairwise if pairwise else similarity.maxsim
        return compare(a, b, length_normalize=options.score == "mean")
