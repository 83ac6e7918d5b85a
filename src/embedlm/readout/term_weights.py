"""Term weights from the language-model head: w = log(1 + relu(logits)).

At the pooled state (PromptReps, arXiv:2404.18424), or the maximum or the sum over the pooled tokens
(SPLADE, arXiv:2109.10086).

Shapes: T tokens of a pack, N pooled tokens, B texts, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.prompt.special import core_of
from embedlm.readout.pooling import Tokens, pooled
from embedlm.readout.words import valid_words
from embedlm.schema.heads import Sparse

__all__ = ["SparseRow", "best_terms", "select_terms", "term_weights", "text_token_ids", "word_like"]

SparseRow = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Ids of the vocabulary, ascending, and their weights."""
Logits = Callable[[Tensor], Tensor]
"""From final states, h_ND, to the language-model head's logits, logits_NV."""

_BLOCK = 256
"""Rows of logits held at once."""


def term_weights(
    logits: Logits,
    h_TD: Tensor,
    tokens: Tokens,
    options: Sparse,
    pooling: str | tuple[str, ...],
    keep_N: Tensor | None = None,
) -> Tensor:
    """Return each text's weights of the whole vocabulary, w_BV.

    Args:
        logits: the language-model head.
        h_TD: states of the last layer.
        tokens: the pooled tokens.
        options: of the head: how weights are reduced over tokens.
        pooling: the recipe's, for `reduce: pool` and `auto`.
        keep_N: which of the tokens are no sinks; None: all.
    """
    reduce, saturated = options.reduce, ACTIVATIONS[options.activation]
    if reduce == "auto":
        reduce = "last" if pooling == "last" else "max"
    if reduce in ("pool", "last"):
        v_BD = pooled(h_TD, tokens, pooling if reduce == "pool" else "last", keep_N)
        blocks = v_BD.to(h_TD.dtype).split(_BLOCK)
        return torch.cat([saturated(logits(v)) for v in blocks])
    gathered = tokens if keep_N is None else tokens.only(keep_N)
    return _reduced(lambda h_ND: saturated(logits(h_ND)), h_TD, gathered, reduce)


_WORD_LIKE: WeakKeyDictionary[Any, npt.NDArray[np.int64]] = WeakKeyDictionary()


def word_like(tokenizer: Any) -> npt.NDArray[np.int64]:
    """Return the ids of tokens that may expand a text: letters from a-z on (ielab/PromptReps)."""
    if tokenizer not in _WORD_LIKE:
        bare = ((t[1:] if t[:1] in ("▁", " ") else t, i) for t, i in tokenizer.get_vocab().items())
        ids = [i for t, i in bare if (t.isalpha() or t.isdigit()) and "a" <= t[0] <= "z"]
        _WORD_LIKE[tokenizer] = np.array(sorted(ids), dtype=np.int64)
    return _WORD_LIKE[tokenizer]


def _log_saturated(logits: Tensor) -> Tensor:
    return torch.log1p(torch.relu(logits.float()))


def _twice_log_saturated(logits: Tensor) -> Tensor:
    return torch.log1p(_log_saturated(logits))


ACTIVATIONS = {"relu": _log_saturated, "log1p_relu": _twice_log_saturated}
"""From logits to weights, by the name of a sparse head's activation.

log1p_relu is that of OpenSearch's models (arXiv:2504.14839).
"""


def _reduced(weigh: Logits, h_TD: Tensor, tokens: Tokens, reduce: str) -> Tensor:
    """Reduce over tokens block by block, so that few rows of logits are held at once."""
    h_ND = h_TD.index_select(0, tokens.index_N)
    out_BV: Tensor | None = None
    for h, sequence in zip(h_ND.split(_BLOCK), tokens.sequence_N.split(_BLOCK), strict=True):
        w = weigh(h)
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


def select_terms(
    w_V: npt.NDArray[np.float32],
    words: npt.NDArray[np.int64] | None,
    options: Sparse,
    word_like_ids: npt.NDArray[np.int64] | None,
) -> SparseRow:
    """Return the terms of one text that stay; all that have no number, where some have none.

    Args:
        w_V: weights of the whole vocabulary.
        words: vocabulary ids of the text's own words; None: all terms may stay.
        options: of the head: how many terms stay.
        word_like_ids: terms that may expand the text; None: none.
    """
    wrong = np.flatnonzero(~np.isfinite(w_V))
    if len(wrong):  # no cut may hide them: `check_finite` tells of them
        return wrong, w_V[wrong]
    if words is None:
        return best_terms(w_V, np.flatnonzero(w_V), options.top_k)
    if len(words):
        of_text = best_terms(w_V, words[w_V[words] > 0], options.top_k)
    else:
        fewest = min(options.fallback_top_k, options.top_k or options.fallback_top_k)
        of_text = best_terms(w_V, np.flatnonzero(w_V), fewest)
    if word_like_ids is None:
        return of_text
    outside = np.setdiff1d(word_like_ids, words)
    expansion = best_terms(w_V, outside[w_V[outside] > 0], options.expand)
    ids = np.union1d(of_text[0], expansion[0])
    return ids, w_V[ids]


def best_terms(
    w_V: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], k: int | None
) -> SparseRow:
    """Return the k of some terms with the largest weights, in the order of their ids.

    A weight of a table may be below 0, and counts by its size.
    """
    if k is not None and len(ids) > k:
        # Larger weight first, then smaller id: ties are broken the same way on every machine.
        ids = ids[np.lexsort((ids, -np.abs(w_V[ids])))[:k]]
    ids = np.sort(ids)
    return ids, w_V[ids]


def text_token_ids(
    texts: Sequence[str], tokenizer: Any, stop_words: str
) -> list[npt.NDArray[np.int64]]:
    """Return for each text the ids of its own words, each word tokenised alone (PromptReps)."""
    core = core_of(tokenizer)
    words = [valid_words(text, stop_words) for text in texts]
    distinct = list(dict.fromkeys(word for row in words for word in row))
    encoded = core.encode_batch_fast(distinct, add_special_tokens=False)
    ids = {word: encoding.ids for word, encoding in zip(distinct, encoded, strict=True)}
    return [np.array(sorted({i for w in row for i in ids[w]}), dtype=np.int64) for row in words]
