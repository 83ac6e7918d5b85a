"""Late chunking: a document is read once, and each chunk's own token states are pooled.

Günther et al., Late chunking: contextual chunk embeddings using long-context embedding models,
arXiv:2409.04701. Under a causal mask a chunk knows only what stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from embedlm.errors import UnsupportedError
from embedlm.prompt.segments import SEGMENT_ID
from embedlm.readout import PackStates
from embedlm.search.chunks import Span

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["late_model", "late_vectors"]

_POOLINGS = ("mean", "weighted_mean", "max")
_TEXT, _LITERAL = SEGMENT_ID["text"], SEGMENT_ID["literal"]


def _check_late(model: Embedder) -> None:
    """Refuse a model whose vectors are not made of the text's own token states.

    Raises:
        UnsupportedError: with what can be done.
    """
    recipe = model.recipe
    pooling = recipe.pooling
    plain = pooling.latent is None and not pooling.denoise and not pooling.reads_statistics
    one = recipe.transform is None and len(model.renderer.templates("document")) == 1
    if pooling.kind not in _POOLINGS or not plain or not one:
        raise UnsupportedError(
            f"recipe {recipe.name!r} pools by {pooling.kind}, and late chunking needs one "
            f"prompt and a plain pooling of the text's tokens ({', '.join(_POOLINGS)}); "
            "cut without it, or take another recipe"
        )


def late_model(model: Embedder) -> Embedder:
    """Return the model that pools a chunk's tokens: without special tokens, where all are pooled.

    Raises:
        UnsupportedError: the model does not pool the text's own tokens.
    """
    _check_late(model)
    if model.recipe.pooling.over != "all":
        return model
    return model.with_recipe(model.recipe.override({"pooling.over": "text"}))


def late_vectors(model: Embedder, text: str, spans: Sequence[Span]) -> npt.NDArray[np.float32]:
    """Return the vector of each chunk of a document, (chunks, D).

    A document that is longer than the model's limit is read in windows of whole chunks.

    Args:
        model: of `late_model`.
        text: of the document.
        spans: its chunks, in order.
    """
    limit = model.renderer.max_length("document")
    vectors: list[npt.NDArray[np.float32]] = []
    first = 0
    while first < len(spans):
        last = _reach(model, text, spans, first, limit)
        begin = spans[first][0]
        inner = [(start - begin, end - begin) for start, end in spans[first:last]]
        vectors.append(_window(model, text[begin : spans[last - 1][1]], inner))
        first = last
    return np.concatenate(vectors)


def _rendered(model: Embedder, text: str) -> tuple[list[int], npt.NDArray[np.uint8], bool]:
    from embedlm.prompt.render import Request

    batch = model.renderer.render([text], Request("document"), None)[0]
    return list(batch.ids[0]), np.asarray(batch.segments[0]), bool(batch.truncated[0])


def _reach(model: Embedder, text: str, spans: Sequence[Span], first: int, limit: int | None) -> int:
    """Return one past the last chunk that a window from `first` on can hold."""
    if limit is None or not _rendered(model, text[spans[first][0] : spans[-1][1]])[2]:
        return len(spans)
    low, high = first + 1, len(spans)
    while low < high:
        middle = (low + high + 1) // 2
        if _rendered(model, text[spans[first][0] : spans[middle - 1][1]])[2]:
            high = middle - 1
        else:
            low = middle
    return low


def _window(model: Embedder, text: str, spans: Sequence[Span]) -> npt.NDArray[np.float32]:
    """Return the vectors of chunks of a text that is run in one pass."""
    ids, marks, _ = _rendered(model, text)
    own = np.flatnonzero(marks == _TEXT)
    segments = []
    for start, end in spans:
        inside = own[_count(model, text[:start]) : max(_count(model, text[:end]), 1)]
        inside = inside if len(inside) else own[-1:]
        chunk = np.where(marks == _TEXT, _LITERAL, marks).astype(np.uint8)
        chunk[inside] = _TEXT
        segments.append(chunk)
    with torch.inference_mode():
        h_TD = model.executor.run([ids], layers=model.readout.layers)
        # All rows are one shared prefix: its states stand in h_TD once.
        states = PackStates(h_TD, [ids] * len(spans), segments, prefix=len(ids), role="document")
        return np.asarray(model.vectors_of(states), dtype=np.float32)


def _count(model: Embedder, text: str) -> int:
    """Return how many tokens of the text's own a rendered text has."""
    if not text.strip():
        return 0
    return int((_rendered(model, text)[1] == _TEXT).sum())
