"""Cuts documents into chunks that overlap: by tokens, by sentences or at headings."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal

from embedlm.data.lines import paragraphs
from embedlm.data.rows import FileRow
from embedlm.data.sentences import sentence_gaps
from embedlm.errors import InputError, closest
from embedlm.prompt.special import core_of

__all__ = ["Chunking", "Span", "sentence_spans"]

Span = tuple[int, int]
"""First and one past the last character."""
WAYS = ("tokens", "sentences", "headings")
SIZE = 256
"""Tokens of a chunk where nothing is said and a model reads as many."""
_ROW = re.compile(r"^[ \t]*\|.*\|(?=[ \t]*$)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a document is cut; sizes are in tokens of the model."""

    way: Literal["tokens", "sentences", "headings"]
    size: int | None = None
    """Tokens of a chunk, at most (a sentence that is longer stands alone, cut by tokens); None:
    `SIZE`, or what the model of an index reads where that is less."""
    overlap: int = 0
    """Tokens that a chunk shares with the one before: whole sentences, where cut by these."""
    late: bool = False
    """The whole document is read once and each chunk's states are pooled, so that a chunk knows
    what stands around it (Günther et al., Late chunking, arXiv:2409.04701)."""

    def __post_init__(self) -> None:
        """Refuse sizes that give no chunks."""
        if self.way not in WAYS:
            raise InputError(
                f"chunking {self.way!r} is not known; allowed: {', '.join(WAYS)}."
                + closest(self.way, list(WAYS))
            )
        size = SIZE if self.size is None else self.size
        if size < 1 or not 0 <= self.overlap < size:
            raise InputError(
                f"chunks of {size} tokens with an overlap of {self.overlap}; give a size "
                "above 0 and an overlap below the size"
            )

    def spans(self, text: str, tokenizer: Any) -> list[Span]:
        """Return the chunks of a text, in order; together they hold all of it but blank space.

        Args:
            text: of a document.
            tokenizer: a fast one of transformers, by which tokens are counted.
        """
        tokens, size = _tokens(text, tokenizer), self.size or SIZE
        if self.way == "tokens":
            return list(_windows(tokens, size, self.overlap))
        spans: list[Span] = []
        sections = _sections(text) if self.way == "headings" else [(0, len(text))]
        for start, end in sections:
            units = [(start + a, start + b) for a, b in sentence_spans(text[start:end])]
            spans += _packed(units, tokens, size, self.overlap)
        return spans


def sentence_spans(text: str) -> list[Span]:
    """Return where the sentences of a text stand; a line's end closes one too.

    A row of a table is one, whatever stands in its cells.
    """
    rows = [row.span() for row in _ROW.finditer(text)]

    def in_row(place: int) -> bool:
        before = bisect_right(rows, (place, len(text)))
        return before > 0 and place < rows[before - 1][1]

    gaps = (gap for gap in sentence_gaps(text, lines=True) if not in_row(gap[0]))
    spans, begin = [], 0
    for gap, after in chain(gaps, [(len(text), len(text))]):
        raw = text[begin:gap]
        start = begin + len(raw) - len(raw.lstrip())
        end = begin + len(raw.rstrip())
        if start < end:
            spans.append((start, end))
        begin = after
    return spans


def _tokens(text: str, tokenizer: Any) -> list[Span]:
    encoding = core_of(tokenizer).encode(text, add_special_tokens=False)
    return [(start, end) for start, end in encoding.offsets if end > start]


def _windows(tokens: Sequence[Span], size: int, overlap: int) -> Iterator[Span]:
    start = 0
    while start < len(tokens):
        end = _between(tokens, start, start + size)
        yield tokens[start][0], tokens[end - 1][1]
        if end == len(tokens):
            return
        start = _between(tokens, start, end - overlap)


def _between(tokens: Sequence[Span], start: int, end: int) -> int:
    """Return the last place after a start, and not after an end, where no character is divided.

    A character of several tokens that does not fit is passed whole.
    """
    end = min(end, len(tokens))
    places: Iterator[int] = chain(range(end, start, -1), range(max(end, start) + 1, len(tokens)))
    for place in places:
        if place == len(tokens) or tokens[place - 1][1] <= tokens[place][0]:
            return place
    return len(tokens)


def _sections(text: str) -> list[Span]:
    """Return what lies between the headings of Markdown, each heading with its text."""
    lines = text.split("\n")
    begins = [0, *accumulate(len(line) + 1 for line in lines)]
    rows = (FileRow(number, line.removesuffix("\r")) for number, line in enumerate(lines))
    found = paragraphs(rows, headings=True)
    starts = [begins[row.line] for row in found if row.heading]
    starts = [0, *starts] if not starts or text[: starts[0]].strip() else starts
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _packed(units: Sequence[Span], tokens: Sequence[Span], size: int, overlap: int) -> list[Span]:
    """Return sentences put together to chunks of a size, with the tokens that lie between them."""
    starts, ends = ([token[side] for token in tokens] for side in (0, 1))
    # The first token of a sentence may begin with the blank before it.
    bounds = [(bisect_right(ends, a), bisect_left(starts, b)) for a, b in units]
    spans: list[Span] = []
    first: int | None = None
    for last, (begin, end) in enumerate(bounds):
        if first is not None and end - bounds[first][0] > size:
            spans.append((units[first][0], units[last - 1][1]))
            first = _carried(bounds, first, last, overlap, size)
        if end - begin > size:
            found = _windows(tokens[begin:end], size, overlap)
            spans += [(max(start, units[last][0]), stop) for start, stop in found]
            first = None
        elif first is None:
            first = last
    if first is not None:
        spans.append((units[first][0], units[-1][1]))
    return spans


def _carried(bounds: Sequence[Span], first: int, last: int, overlap: int, size: int) -> int | None:
    """Return the first sentence of the next chunk, which begins with sentences of the one before.

    Args:
        bounds: the first token of each sentence, and one past its last.
        first: the first sentence of the chunk before.
        last: the sentence that it had no room for.
        overlap: tokens that the chunks may share.
        size: tokens of a chunk.
    """
    begin, end = bounds[last]
    if end - begin > size:
        return None
    start = last
    while start > first + 1:
        earlier = bounds[start - 1][0]
        if bounds[last - 1][1] - earlier > overlap or end - earlier > size:
            break
        start -= 1
    return start
