"""Terms of a vocabulary as people read them, and where a text has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedlm.prompt.special import core_of

__all__ = ["marked_words", "spelled", "weighted_terms"]

MOST = 40
"""Terms of a text that are told, the heaviest."""


def spelled(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return tokens as they read in a text; one that is part of a character as it is stored."""
    core = tokenizer.backend_tokenizer
    read = core.decode_batch([[one] for one in ids], skip_special_tokens=False)
    stored = tokenizer.convert_ids_to_tokens(list(ids))
    return [
        str(one) if not text or "\ufffd" in text else text
        for text, one in zip(read, stored, strict=True)
    ]


def weighted_terms(output: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """Return the heaviest terms of a sparse vector, with id, term and weight."""
    ids, weights = output
    order = np.argsort(-np.asarray(weights), kind="stable")[:MOST].tolist()
    chosen = [int(ids[at]) for at in order]
    return [
        {"id": one, "term": term, "weight": round(float(weights[at]), 4)}
        for one, term, at in zip(chosen, spelled(tokenizer, chosen), order, strict=True)
    ]


def marked_words(text: str, output: Any, tokenizer: Any) -> list[list[float]]:
    """Return [start, stop, weight] of the tokens of a text that a sparse vector has terms for.

    A token has the weight of its own id, or of a term that differs in case or in the space before
    it alone.
    """
    ids, weights = output
    by_word: dict[str, float] = {}
    for term, weight in zip(spelled(tokenizer, [int(i) for i in ids]), weights, strict=True):
        word = term.strip().lower()
        by_word[word] = max(by_word.get(word, 0.0), float(weight))
    encoding = core_of(tokenizer).encode(text, add_special_tokens=False)
    marks: list[list[float]] = []
    for start, stop in encoding.offsets:
        piece = text[start:stop]
        start += len(piece) - len(piece.lstrip())
        weight = by_word.get(piece.strip().lower(), 0.0)
        if weight > 0 and piece.strip():
            marks.append([start, stop, round(weight, 4)])
    return marks
