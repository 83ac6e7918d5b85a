"""The sentence of a passage that answers a query, for showing it marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from embedlm.search.chunks import Span, sentence_spans
from embedlm.search.lexical import bucket, terms_of

__all__ = ["best_sentence", "nearest_sentences", "snippet"]

LONGEST = 240
"""Characters of a snippet."""


def best_sentence(text: str, query_weights: Mapping[int, float], analyzer: str) -> Span | None:
    """Return the sentence that holds the most of a query's terms; None where none holds any.

    Args:
        text: of the passage.
        query_weights: of the query's terms, by number.
        analyzer: of BM25.
    """
    best, most = None, 0.0
    for start, end in sentence_spans(text):
        terms = {bucket(term) for term in terms_of(text[start:end], analyzer)}
        score = sum(query_weights.get(term, 0.0) for term in terms)
        if score > most:
            best, most = (start, end), score
    return best


def nearest_sentences(
    texts: Sequence[str], scores: Callable[[list[str]], npt.NDArray[np.float32]]
) -> list[Span]:
    """Return the sentence of each text that the model finds nearest to the query.

    Args:
        texts: of passages.
        scores: of sentences; called once for all.
    """
    spans = [sentence_spans(text) or [(0, len(text))] for text in texts]
    sentences = [text[a:b] for text, own in zip(texts, spans, strict=True) for a, b in own]
    found = scores(sentences)
    ends = np.cumsum([len(own) for own in spans])
    parts = np.split(found, ends[:-1])
    return [own[int(np.argmax(part))] for own, part in zip(spans, parts, strict=True)]


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
