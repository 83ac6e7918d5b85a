"""The sparse head: weights over the vocabulary.

From the language-model head (SPLADE, PromptReps; `term_weights.py`), or from a layer or a table
that weighs the text's own tokens (BGE-M3, SparseStaticEmbedding; `token_layers.py`).

Shapes: B texts of a pack, n texts of a call, N tokens of a pack, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from embedlm.backbone.memory import put
from embedlm.errors import UnsupportedError
from embedlm.readout import similarity
from embedlm.readout.head import Floats, Head, Indices
from embedlm.readout.term_weights import SparseRow, select_terms, term_weights, word_like
from embedlm.readout.token_layers import spread, token_weights, unweighed
from embedlm.schema.heads import Sparse

if TYPE_CHECKING:
    from embedlm.backbone import Backbone
    from embedlm.readout.pooling import Tokens
    from embedlm.readout.readout import Readout
    from embedlm.readout.states import PackStates
    from embedlm.schema.recipe import Recipe

__all__ = ["SparseHead"]


class _Rows:
    def __init__(self, count: int, vocab_size: int) -> None:
        self.rows: list[list[SparseRow]] = [[] for _ in range(count)]
        self.vocab_size = vocab_size

    def add(self, target_B: Indices, share_B: Floats, output: list[SparseRow]) -> None:
        for target, share, (ids, weights) in zip(target_B.tolist(), share_B, output, strict=True):
            self.rows[target].append((ids, share * weights))

    def value(self, order_n: Indices) -> csr_matrix:
        return _stack([self.rows[target] for target in order_n.tolist()], self.vocab_size)


class SparseHead(Head[Sparse]):
    """Weighs terms of the vocabulary."""

    kind = "sparse"

    @property
    def reads_lm_head(self) -> bool:
        """Whether the weights are the language-model head's."""
        return self.options.weights == "lm_head"

    @property
    def stop_words(self) -> str | None:
        """The stop-word list, where only a text's own words are weighed."""
        return self.options.stop_words if self.options.restrict == "text" else None

    @property
    def over(self) -> Any:
        """The segments whose tokens are weighed; None: those of the pooling."""
        return self.options.over

    def read(self, readout: Readout, states: PackStates) -> list[SparseRow]:
        """Return each text's terms and weights."""
        if not self.reads_lm_head:
            over = self._segments(readout)
            w_N = self._weights(readout, states, states.tokens(over)).float().cpu().numpy()
            ids = states.picked(over).ids_by_text()
            return token_weights(w_N, ids, self.options.top_k, self._left_out(readout))
        return self._selected(readout, states, self._term_weights(readout, states))

    def _selected(self, readout: Readout, states: PackStates, w_BV: Tensor) -> list[SparseRow]:
        """Return the terms of each text that stay."""
        words = states.words if states.words is not None else [None] * len(w_BV)
        extra = word_like(readout.backbone.tokenizer) if self.options.expand else None
        return [
            select_terms(w_V, ids, self.options, extra)
            for w_V, ids in zip(w_BV.cpu().numpy(), words, strict=True)
        ]

    def gathered(self, readout: Readout, states: PackStates) -> Tensor:
        """Return the weights of a vocabulary of one term, whose logit is the state."""
        if not self.reads_lm_head:
            return super().gathered(readout, states)
        tokens, kept_N = readout.pooled_tokens(states), readout.first_left_out(states)
        kind = readout.pooling.kind
        return term_weights(lambda h: h, states.h_TD, tokens, self.options, kind, kept_N)

    def collector(self, readout: Readout, count: int) -> _Rows:
        """Return a collector of rows; those of one text are added up by their shares."""
        return _Rows(count, readout.backbone.vocab_size)

    def gradient_rows(self, readout: Readout, states: PackStates, longest: int) -> Tensor:
        """Return each text's weights of the whole vocabulary, w_BV; 0 for terms that do not stay.

        Which stay has no gradient; so they are those that `read` gives.
        """
        w_BV = self._every_weight(readout, states)
        if self.options.top_k is None and self.stop_words is None:
            return w_BV
        kept_BV = torch.zeros_like(w_BV, dtype=torch.bool)
        for row, (ids, _) in enumerate(self._selected(readout, states, w_BV.detach().float())):
            kept_BV[row, torch.from_numpy(ids).to(w_BV.device)] = True
        return w_BV * kept_BV

    def _every_weight(self, readout: Readout, states: PackStates) -> Tensor:
        """Return each text's weights of the whole vocabulary with their gradient, w_BV."""
        if self.reads_lm_head:
            return self._term_weights(readout, states)
        over = self._segments(readout)
        tokens = states.tokens(over)
        ids_N = put(torch.from_numpy(states.picked(over).ids()), states.h_TD.device)
        shape = (len(states), readout.backbone.vocab_size)
        w_N = self._weights(readout, states, tokens)
        return spread(w_N, ids_N, tokens.sequence_N, shape, self._left_out(readout))

    def columns(self, readout: Readout, longest: int) -> int:
        """Return the size of the vocabulary."""
        return readout.backbone.vocab_size

    def _segments(self, readout: Readout) -> Any:
        return readout.pooling.over if self.options.over is None else self.options.over

    def _weights(self, readout: Readout, states: PackStates, tokens: Tokens) -> Tensor:
        """Return the weight of each picked token, w_N; none for a token that stands for nothing."""
        h_ND = tokens.states(states.h_TD)
        if self.options.weights == "token":
            weight_N: Tensor = torch.relu(self._layer(readout)(h_ND))[:, 0]
            return weight_N
        nothing_B = put(torch.from_numpy(states.nothing_B(self._segments(readout))), h_ND.device)
        return h_ND[:, 0].masked_fill(nothing_B[tokens.sequence_N], 0)

    def _left_out(self, readout: Readout) -> list[int]:
        """Return the ids of tokens that have no weight."""
        table = self.options.weights == "static"
        return [] if table else unweighed(readout.backbone.tokenizer)

    def check(self, backbone: Backbone) -> None:
        """Refuse a table of vectors where one of weights is read."""
        if self.options.weights == "static" and not (backbone.static and backbone.dim == 1):
            raise UnsupportedError(
                f"the sparse head's `weights: static` reads a table of one weight a token, and "
                f"{backbone.name!r} has none; load a folder of SparseStaticEmbedding, or take "
                "`weights: lm_head`"
            )

    def _layer(self, readout: Readout) -> nn.Linear:
        layers = readout.parts.token_layers
        if layers is None or layers.weight is None:
            raise UnsupportedError(
                "the sparse head's `weights: token` needs a layer of the checkpoint that weighs "
                "tokens, and this model has none; load one with a recipe such as bge-m3"
            )
        return layers.weight

    def _term_weights(self, readout: Readout, states: PackStates) -> Tensor:
        tokens = readout.pooled_tokens(states)
        logits, pooling = readout.backbone.logits, readout.pooling.kind
        kept_N = readout.kept(states, tokens)
        return term_weights(logits, states.h_TD, tokens, self.options, pooling, kept_N)

    @staticmethod
    def holds(value: Any) -> bool:
        """Tell whether a value is a sparse matrix."""
        return hasattr(value, "tocsr")

    @staticmethod
    def count(value: Any) -> int:
        """Return the number of rows."""
        return int(value.shape[0])

    @staticmethod
    def finite(value: Any) -> npt.NDArray[np.bool_]:
        """Tell for each row whether all its weights are finite."""
        entries = value.tocoo()
        finite_n = np.ones(value.shape[0], dtype=bool)
        finite_n[entries.row[~np.isfinite(entries.data)]] = False
        return finite_n

    @staticmethod
    def score(a: Any, b: Any, recipe: Recipe, *, pairwise: bool) -> Floats:
        """Compare as the recipe's sparse head says: by the inner product, or otherwise."""
        options = next((h for h in recipe.heads if isinstance(h, Sparse)), Sparse())
        compare = similarity.SPARSE[options.similarity]
        return compare(a.tocsr(), b.tocsr(), pairwise=pairwise)


def _stack(rows: Sequence[Sequence[SparseRow]], vocab_size: int) -> csr_matrix:
    """Return the sum of each text's sparse rows as one CSR matrix (n, V)."""
    indptr, indices, data = [0], [], []
    for parts in rows:
        if len(parts) == 1:
            ids, weights = parts[0]
        else:
            every = np.concatenate([ids for ids, _ in parts])
            ids, where = np.unique(every, return_inverse=True)
            weights = np.zeros(len(ids), dtype=np.float32)
            np.add.at(weights, where, np.concatenate([w for _, w in parts]))
        indices.append(ids)
        data.append(weights)
        indptr.append(indptr[-1] + len(ids))
    columns = np.concatenate(indices) if indices else np.empty(0, dtype=np.int64)
    values = np.concatenate(data) if data else np.empty(0, dtype=np.float32)
    return csr_matrix((values, columns, np.asarray(indptr)), shape=(len(rows), vocab_size))
