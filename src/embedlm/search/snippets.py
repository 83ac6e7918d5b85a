"""The sentence of a passage that answers a query, for showing it marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from embedlm.search.chunks import Span, sentence_spans
from embedlm.search.lexical import bucket, terms_of

__all__ = ["best_sentence", "snippet"]

LONGEST = 240
"""Characters of a snippet."""


def best_sentence(
    text: str,
    query: str,
    weights: Mapping[int, float],
    analyzer: str,
    nearest: Callable[[Sequence[str]], npt.NDArray[np.float32]] | None = None,
) -> Span:
    """Return the sentence that holds the most of a query's terms, by their weight.

    Args:
        text: of the passage.
        query: what was asked.
        weights: of the query's terms, by number.
        analyzer: of BM25.
        nearest: scores sentences by the model, for a passage that holds none of the terms; None
            takes the first sentence then.
    """
    spans = sentence_spans(text) or [(0, len(text))]
    scores = []
    for start, end in spans:
        terms = {bucket(term) for term in terms_of(text[start:end], analyzer)}
        scores.append(sum(weights.get(term, 0.0) for term in terms))
    if max(scores) <= 0 and nearest is not None and len(spans) > 1:
        scores = nearest([text[start:end] for start, end in spans]).tolist()
    return spans[int(np.argmax(scores))]


def snippet(text: str, sentence: Span, before: str = "«", after: str = "»") -> str:
    """Return what stands around a sentence on one line, the sentence marked."""
    start, end = sentence
    marked = text[start:end]
    if len(marked) > LONGEST:
        marked = marked[: LONGEST - 3] + "..."
    room = max(0, LONGEST - len(marked))
    left, right = text[:start], text[end:]
    lead = left[-(room // 2) :] if room // 2 else ""
    tail = right[: room - len(lead)]
    lead = ("..." if len(lead) < len(left) else "") + lead
    tail = tail + ("..." if len(tail) < len(right) else "")
    return " ".join(f"{lead}{before}{marked}{after}{tail}".split())
