"""Weights over the vocabulary from the language-model head.

w = log(1 + relu(logits)), at the pooled state (PromptReps) or the maximum or sum over the pooled
tokens (SPLADE, arXiv 2109.10086).

Shapes: T tokens of a pack, N pooled tokens, B rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from embedlm.backbone import Backbone
from embedlm.readout.pooling import Tokens, last
from embedlm.readout.words import valid_words
from embedlm.schema.recipe import Sparse

__all__ = ["SparseRow", "sparse_rows", "stack", "term_weights", "text_token_ids"]

SparseRow = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Ids of the vocabulary, ascending, and their weights."""

_BLOCK = 256
"""Rows of logits held at once."""


def sparse_rows(
    backbone: Backbone,
    h_TD: Tensor,
    tokens: Tokens,
    head: Sparse,
    pool: Callable[[Tensor, Tokens], Tensor],
    allowed: Sequence[npt.NDArray[np.int64] | None] | None = None,
) -> list[SparseRow]:
    """Return each row's ids and weights.

    Args:
        backbone: has the language-model head.
        h_TD: states of the last layer.
        tokens: the pooled tokens.
        head: reduction, restriction and number of weights kept.
        pool: the recipe's pooling, for `reduce: pool`.
        allowed: ids that each row may use, for `restrict: text`.
    """
    w_BV = term_weights(backbone, h_TD, tokens, head, pool)
    may = allowed if allowed is not None else [None] * len(w_BV)
    others = _word_like(backbone.tokenizer) if head.expand else None
    return [_row(w_V, ids, head, others) for w_V, ids in zip(w_BV.cpu().numpy(), may, strict=True)]


def term_weights(
    backbone: Backbone,
    h_TD: Tensor,
    tokens: Tokens,
    head: Sparse,
    pool: Callable[[Tensor, Tokens], Tensor],
) -> Tensor:
    """Return each row's weights of the whole vocabulary, w_BV."""
    reduce = head.reduce
    if reduce == "auto":
        reduce = "last" if pool is last else "max"
    if reduce in ("pool", "last"):
        v_BD = pool(h_TD, tokens) if reduce == "pool" else last(h_TD, tokens)
        blocks = v_BD.to(h_TD.dtype).split(_BLOCK)
        return torch.cat([_weights(backbone.logits(v)) for v in blocks])
    return _reduced(backbone, h_TD, tokens, reduce)


_WORD_LIKE: WeakKeyDictionary[Any, npt.NDArray[np.int64]] = WeakKeyDictionary()


def _word_like(tokenizer: Any) -> npt.NDArray[np.int64]:
    """Return the ids of tokens that may expand a text: letters from a-z on (ielab/PromptReps)."""
    if tokenizer not in _WORD_LIKE:
        bare = ((t[1:] if t[:1] in ("▁", " ") else t, i) for t, i in tokenizer.get_vocab().items())
        found = [i for t, i in bare if (t.isalpha() or t.isdigit()) and "a" <= t[0] <= "z"]
        _WORD_LIKE[tokenizer] = np.array(sorted(found), dtype=np.int64)
    return _WORD_LIKE[tokenizer]


def _weights(logits: Tensor) -> Tensor:
    return torch.log1p(torch.relu(logits.float()))


def _reduced(backbone: Backbone, h_TD: Tensor, tokens: Tokens, reduce: str) -> Tensor:
    """Reduce over tokens block by block: no more than _BLOCK rows of logits at once."""
    h_ND = h_TD.index_select(0, tokens.index_N)
    out_BV: Tensor | None = None
    for h, sequence in zip(h_ND.split(_BLOCK), tokens.sequence_N.split(_BLOCK), strict=True):
        w = _weights(backbone.logits(h))
        if out_BV is None:
            out_BV = w.new_zeros(len(tokens.starts_B), w.shape[1])
        if reduce == "sum":
            out_BV.index_add_(0, sequence, w)
        elif w.requires_grad:  # what was written in place has no gradient
            out_BV = out_BV.scatter_reduce(0, sequence[:, None].expand_as(w), w, "amax")
        else:
            out_BV.scatter_reduce_(0, sequence[:, None].expand_as(w), w, "amax")
    assert out_BV is not None
    return out_BV


def _row(
    w_V: npt.NDArray[np.float32],
    allowed: npt.NDArray[np.int64] | None,
    head: Sparse,
    others: npt.NDArray[np.int64] | None,
) -> SparseRow:
    if allowed is None:
        return _top(w_V, np.flatnonzero(w_V), head.top_k)
    if len(allowed):
        own = _top(w_V, allowed[w_V[allowed] > 0], head.top_k)
    else:
        own = _top(w_V, np.flatnonzero(w_V), head.fallback_top_k)
    if others is None:
        return own
    outside = np.setdiff1d(others, allowed)
    more = _top(w_V, outside[w_V[outside] > 0], head.expand)
    ids = np.union1d(own[0], more[0])
    return ids, w_V[ids]


def _top(w_V: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], k: int | None) -> SparseRow:
    if k is not None and len(ids) > k:
        # Larger weight first, then smaller id: ties are broken the same way on every machine.
        ids = ids[np.lexsort((ids, -w_V[ids]))[:k]]
    ids = np.sort(ids)
    return ids, w_V[ids]


def text_token_ids(
    texts: Sequence[str], tokenizer: Any, stop_words: str
) -> list[npt.NDArray[np.int64]]:
    """Return for each text the ids of its own words, each word tokenised alone (PromptReps)."""
    core = tokenizer.backend_tokenizer
    words = [valid_words(text, stop_words) for text in texts]
    distinct = list(dict.fromkeys(word for row in words for word in row))
    encoded = core.encode_batch_fast(distinct, add_special_tokens=False)
    ids = {word: encoding.ids for word, encoding in zip(distinct, encoded, strict=True)}
    return [np.array(sorted({i for w in row for i in ids[w]}), dtype=np.int64) for row in words]


def stack(rows: Sequence[Sequence[SparseRow]], vocab_size: int) -> csr_matrix:
    """Return the mean of each text's sparse rows as one CSR matrix (n, V)."""
    indptr, indices, data = [0], [], []
    for parts in rows:
        if len(parts) == 1:
            ids, weights = parts[0]
        else:
            every = np.concatenate([ids for ids, _ in parts])
            ids, where = np.unique(every, return_inverse=True)
            weights = np.zeros(len(ids), dtype=np.float32)
            np.add.at(weights, where, np.concatenate([w for _, w in parts]) / len(parts))
        indices.append(ids)
        data.append(weights)
        indptr.append(indptr[-1] + len(ids))
    columns = np.concatenate(indices) if indices else np.empty(0, dtype=np.int64)
    values = np.concatenate(data) if data else np.empty(0, dtype=np.float32)
    return csr_matrix((values, columns, np.asarray(indptr)), shape=(len(rows), vocab_size))
