"""Which segment of the template each token of a joined prompt belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.schema.recipe import SEGMENTS, Boundary
from embedlm.schema.template import Piece

__all__ = ["SEGMENT_ID", "Segments", "count_boundary", "mark", "of_template", "segment_of"]

Indices = npt.NDArray[np.int64]
Segments = npt.NDArray[np.uint8]
"""For each token the index of its segment in `embedlm.schema.recipe.SEGMENTS`."""

SEGMENT_ID = {name: index for index, name in enumerate(SEGMENTS)}
_SPECIAL, _TEXT, _EOS = (SEGMENT_ID[name] for name in ("special", "text", "eos"))
# Where two pieces meet inside one token, the text wins, then the instruction.
_PRIORITY = np.zeros(len(SEGMENTS), dtype=np.uint8)
for _rank, _name in enumerate(("literal", "demonstrations", "instruction", "repeat", "text"), 1):
    _PRIORITY[SEGMENT_ID[_name]] = _rank


def segment_of(piece: Piece) -> int:
    """Return the segment of a piece's tokens."""
    return SEGMENT_ID["special" if piece.kind == "bos" else piece.kind]


def _pieces_of(row: list[Piece], encoding: Any) -> tuple[Indices, Indices]:
    """Return the index of the first and of the last piece that each token has characters of."""
    starts_ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    bounds = np.cumsum([0, *(len(piece.value) for piece in row)])
    first = np.searchsorted(bounds, starts_ends[:, 0], side="right") - 1
    last = np.searchsorted(bounds, starts_ends[:, 1] - 1, side="right") - 1
    first = np.clip(first, 0, len(row) - 1)
    return first, np.clip(np.maximum(last, first), 0, len(row) - 1)


def of_template(row: list[Piece], encoding: Any) -> npt.NDArray[np.bool_]:
    """Tell for each token of the joined pieces whether it has characters of the template.

    A token that lies in two copies of the text counts as one: what separates them stays.
    """
    first, last = _pieces_of(row, encoding)
    is_text = np.array([piece.kind in ("text", "repeat") for piece in row])
    return np.asarray((last > first) | ~is_text[first])


def mark(row: list[Piece], encoding: Any) -> Segments:
    """Return the segment of each token of the joined pieces, by character offsets."""
    is_special = np.asarray(encoding.special_tokens_mask, dtype=bool)
    kinds = np.array([segment_of(piece) for piece in row], dtype=np.uint8)
    first, last = _pieces_of(row, encoding)
    marks = kinds[last]
    for index in np.flatnonzero(last > first):
        inside = kinds[first[index] : last[index] + 1]
        marks[index] = inside[np.argmax(_PRIORITY[inside])]
    # The widths say nothing of tokens without characters: BOS, CLS, SEP.
    marks[is_special] = _SPECIAL
    return marks


def count_boundary(
    row: list[Piece],
    marks: Segments,
    core: Any,
    boundary: Boundary,
    special: bool,
) -> None:
    """Find the text by counting tokens, as some references do; changes the marks in place.

    Args:
        row: the pieces that were joined.
        marks: segments by offsets.
        core: the tokenizer's backend.
        boundary: count what stands before the text, or from the end the tokens of the text and of
            what follows it.
            Instructor's own count leaves out white space, and leaves a single token in the mean.
            NV-Embed's leaves out BOS, which is pooled where no prefix stands before the text.
            count_prompt is sentence-transformers' way, see `_leave_out_prompt`.
        special: whether the tokenizer adds its own special tokens.
    """
    index = next(i for i, piece in enumerate(row) if piece.kind == "text")
    prefix = "".join(piece.value for piece in row[:index])
    if boundary == "count_text":
        rest = "".join(piece.value for piece in row[index:])
        count = len(core.encode(rest, add_special_tokens=False).ids)
        start = max(len(marks) - count, 0)
    elif boundary == "count_prefix_bare":
        start = len(core.encode(prefix, add_special_tokens=False).ids)
        marks[marks == _SPECIAL] = SEGMENT_ID["literal"]  # a BOS that is not counted is pooled
    elif boundary == "count_instruction":
        count = len(core.encode(prefix.strip(), add_special_tokens=False).ids)
        start = _leading(marks == _SPECIAL) + (count if count > 1 else 0)
    elif boundary == "count_prompt":
        encoding = core.encode(prefix, add_special_tokens=special) if prefix else None
        _leave_out_prompt(marks, encoding)
        return
    elif prefix:
        encoding = core.encode(prefix, add_special_tokens=special)
        is_special = np.asarray(encoding.special_tokens_mask, dtype=bool)
        # A closing SEP or EOS belongs to the whole and not to the prefix.
        start = len(is_special) - min(_leading(is_special[::-1]), len(is_special) - 1)
    else:
        start = _leading(marks == _SPECIAL)
    before, after = marks[:start], marks[start:]
    before[before == _TEXT] = SEGMENT_ID["literal"]
    after[(after != _EOS) & (after != _SPECIAL)] = _TEXT


def _leave_out_prompt(marks: Segments, prompt: Any | None) -> None:
    """Mark what is pooled as sentence-transformers does under `include_prompt: false`.

    The tokens of the prompt are left out, with the special tokens before them; but one special
    token at its end is the whole text's. All that follows is pooled, and without a prompt all is.

    Args:
        marks: segments by offsets, changed in place.
        prompt: the encoding of the prompt alone; None: there is none.
    """
    start = 0
    if prompt is not None:
        start = len(prompt.ids) - int(prompt.special_tokens_mask[-1])
    marks[:start] = SEGMENT_ID["literal"]
    after = marks[start:]
    after[(after != _EOS) & (after != _SPECIAL)] = _TEXT


def _leading(flags: npt.NDArray[np.bool_]) -> int:
    """Return how many flags are set before the first that is not."""
    return int(np.argmin(flags)) if len(flags) and not flags.all() else len(flags)
