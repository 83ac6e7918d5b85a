"""Filled prompts in, token ids and a segment id per token out, within the limit.

Joined: the prompt is one string, tokenised once; the pieces of the template are mapped to tokens by
character offsets. Pieces: every piece is tokenised alone and the ids are concatenated, as some
references do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.prompt.control import ControlTokens
from embedlm.prompt.filling import join_blocks, spell
from embedlm.prompt.segments import (
    SEGMENT_ID,
    Segments,
    count_boundary,
    mark,
    of_template,
    segment_of,
)
from embedlm.prompt.special import adds_eos, core_of, tokenizer_errors
from embedlm.prompt.truncate import Ids, cut_ids, cut_parts, cut_start
from embedlm.schema.prompt import Prompt
from embedlm.schema.recipe import Boundary
from embedlm.schema.template import Piece

__all__ = ["RenderedBatch", "Row", "RowTokenizer"]

_SPECIAL, _EOS = SEGMENT_ID["special"], SEGMENT_ID["eos"]
_CACHED_PIECES = 10_000


@dataclass(slots=True)
class RenderedBatch:
    """What the model will see, a row a text."""

    ids: list[Ids]
    """Token ids."""
    segments: list[Segments]
    """For each token the index of its segment in `embedlm.schema.recipe.SEGMENTS`."""
    text: list[str]
    """The prompt as a string, before truncation."""
    truncated: list[bool] = field(default_factory=list)
    """Whether the row was shortened."""
    unseen: list[int] = field(default_factory=list)
    """How many tokens at each row's end no other token looks at; empty: none."""
    pixels: list[Any] = field(default_factory=list)
    """The image of each row, as the network reads it; empty: none."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: all rows' segments as one array, which takes less time."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        marks = np.concatenate([np.empty(0, np.uint8), *self.segments])
        return state | {"segments": (marks, [len(row) for row in self.segments])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        marks, lengths = state.pop("segments")
        ends = np.cumsum(lengths).tolist()
        rows = [marks[end - size : end] for end, size in zip(ends, lengths, strict=True)]
        for name, value in (state | {"segments": rows}).items():
            setattr(self, name, value)

    def add(self, ids: Ids, marks: Segments, text: str, *, truncated: bool) -> None:
        """Append a row."""
        self.ids.append(ids)
        self.segments.append(marks)
        self.text.append(text)
        self.truncated.append(truncated)


@dataclass(frozen=True, slots=True)
class Row:
    """The pieces of one prompt, every slot filled."""

    pieces: list[Piece]
    renamed: bool = False
    """Whether the template's control tokens stand in the pieces under their other names."""


class RowTokenizer:
    """Tokenises rows by one recipe's prompt."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: Prompt,
        control: ControlTokens,
        boundary: Boundary,
        positions: int | None,
    ) -> None:
        """Take a fast tokenizer and a recipe's prompt.

        Args:
            tokenizer: of transformers.
            prompt: the recipe's.
            control: the tokenizer's control tokens.
            boundary: the recipe's `pooling.boundary`.
            positions: tokens that the model cannot exceed; None: there is no such number.
        """
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.control = control
        self.boundary = boundary
        self.positions = positions
        self._core = core_of(tokenizer)
        self._adds_eos = adds_eos(tokenizer)
        self._piece_cache: dict[tuple[str, bool], Ids] = {}

    def tokenize(
        self, rows: Sequence[Row], limit: int | None, *, special: bool, segments: bool
    ) -> RenderedBatch:
        """Return the ids and segments of rows.

        Args:
            rows: n filled prompts.
            limit: in tokens; what it counts is the recipe's `prompt.truncate`.
            special: whether a joined prompt gets the tokenizer's own special tokens.
            segments: whether the caller reads the segments (they cost time).

        Raises:
            InputError: the prompt alone is longer than the limit.
            ModelError: the tokenizer cannot tokenise a text.
        """
        core_of(self.tokenizer)  # as its settings now are
        with tokenizer_errors():
            if self.prompt.tokenize == "pieces":
                return self._pieces(rows, limit)
            return self._joined(rows, limit, special, segments)

    def _core_of(self, row: Row) -> Any:
        return self.control.core if row.renamed else self._core

    def _shown(self, row: Row, string: str) -> str:
        """Return a row's string with the control tokens under their own names."""
        return self.control.restored(string) if row.renamed else string

    # -- joined -------------------------------------------------------------------------------

    def _joined(
        self, rows: Sequence[Row], limit: int | None, special: bool, segments: bool
    ) -> RenderedBatch:
        closed = [row.pieces[-1].kind == "eos" for row in rows]
        bodies = [
            replace(row, pieces=row.pieces[:-1]) if eos else row
            for row, eos in zip(rows, closed, strict=True)
        ]
        offsets = segments or self.boundary != "offsets"
        strings = [spell(row.pieces) for row in bodies]
        encodings = self._encodings(bodies, strings, special, offsets)
        ending: Ids = []
        if any(closed) and not (self._adds_eos and special):
            eos_id = self.tokenizer.eos_token_id
            ending = [] if eos_id is None else [eos_id]
        batch = RenderedBatch([], [], [])
        for body, string, encoding, eos in zip(bodies, strings, encodings, closed, strict=True):
            tail = ending if eos else []
            ids: Ids = encoding.ids + tail
            cut = self._too_long(len(ids), limit)
            if cut and not offsets:
                encoding = self._encoded(body, special)
            marks = np.empty(0, dtype=np.uint8)
            shortened = False
            if offsets or cut:
                marks = self._marked(body, encoding, tail, eos, special)
            if cut:
                stays = np.append(of_template(body.pieces, encoding), np.ones(len(tail), bool))
                ids, marks, shortened = self._cut_joined(ids, marks, limit, stays)
                if shortened and self.prompt.truncate == "turn":
                    rest = self._written_out(body, ids, marks)
                    encoding = self._encoded(rest, special)
                    marks = self._marked(rest, encoding, tail, eos, special)
                    ids = encoding.ids + tail
            if not ids:
                ids, marks = self._nothing()
            batch.add(ids, marks, self._shown(body, string), truncated=shortened)
        return batch

    def _encodings(
        self, rows: Sequence[Row], strings: Sequence[str], special: bool, offsets: bool
    ) -> list[Any]:
        """Return the encoding of each row; those without offsets take less time."""
        encode = self._core.encode_batch if offsets else self._core.encode_batch_fast
        usual = [string for row, string in zip(rows, strings, strict=True) if not row.renamed]
        encodings = iter(encode(usual, add_special_tokens=special))
        return [self._encoded(row, special) if row.renamed else next(encodings) for row in rows]

    def _encoded(self, row: Row, special: bool) -> Any:
        return self._core_of(row).encode(spell(row.pieces), add_special_tokens=special)

    def _marked(self, row: Row, encoding: Any, tail: Ids, eos: bool, special: bool) -> Segments:
        """Return the segments of a joined prompt's tokens and of the EOS appended to them."""
        marks = mark(row.pieces, encoding)
        if self.boundary != "offsets":
            count_boundary(row.pieces, marks, self._core_of(row), self.boundary, special)
        marks = np.append(marks, np.full(len(tail), _EOS, dtype=np.uint8))
        if eos and self._adds_eos and special and len(marks):
            marks[-1] = _EOS
        return marks

    def _written_out(self, row: Row, ids: Ids, marks: Segments) -> Row:
        """Return the pieces with the text as its kept tokens spell it.

        FlagEmbedding cuts a turn, spells it and tokenises the whole anew: a character cut in two
        becomes a replacement character.
        """
        kept = [ids[index] for index in np.flatnonzero(marks == SEGMENT_ID["text"]).tolist()]
        text = self._core_of(row).decode(kept, skip_special_tokens=False)
        pieces = [replace(p, value=text) if p.kind == "text" else p for p in row.pieces]
        return replace(row, pieces=pieces)

    def _too_long(self, total: int, limit: int | None) -> bool:
        """Tell whether a prompt of that many tokens may have to be cut."""
        slot = limit is not None and self.prompt.truncate == "slot"
        return slot or any(total > most for most in (limit, self.positions) if most is not None)

    def _cut_joined(
        self, ids: Ids, marks: Segments, limit: int | None, stays: npt.NDArray[np.bool_]
    ) -> tuple[Ids, Segments, bool]:
        rule, total = self.prompt.truncate, len(ids)
        if self.prompt.truncation_side == "left":
            most = min(number for number in (limit, self.positions) if number is not None)
            return *cut_start(ids, marks, most), True
        if rule == "turn":  # the prompt is written anew around the text that is left
            stays = np.zeros(total, dtype=bool)
        if limit is not None:
            ids, marks, kept = cut_ids(ids, marks, limit, rule, stays)
            stays = stays[kept]
        if self.positions is not None and len(ids) > self.positions:
            ids, marks, _ = cut_ids(ids, marks, self.positions, "text", stays)
        return ids, marks, len(ids) < total

    def _nothing(self) -> tuple[Ids, Segments]:
        """Return one token for an empty prompt, so that every text has a vector."""
        tokenizer = self.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0):
            if token is not None:
                break
        return [int(token)], np.array([_SPECIAL], dtype=np.uint8)

    # -- pieces -------------------------------------------------------------------------------

    def _pieces(self, rows: Sequence[Row], limit: int | None) -> RenderedBatch:
        joined = [replace(row, pieces=join_blocks(row.pieces)) for row in rows]
        texts = self._text_ids(joined)
        batch = RenderedBatch([], [], [])
        for row, whole in zip(joined, rows, strict=True):
            parts = [self._piece(piece, row, texts) for piece in row.pieces]
            kinds = [segment_of(piece) for piece in row.pieces]
            marks = [np.full(len(p), k, np.uint8) for p, k in zip(parts, kinds, strict=True)]
            cut = False
            if limit is not None:
                parts, marks, cut = cut_parts(parts, marks, limit, self.prompt.truncate)
            if self.positions is not None and sum(map(len, parts)) > self.positions:
                parts, marks, cut = cut_parts(parts, marks, self.positions, "text")
            ids = [token for part in parts for token in part]
            segments = np.concatenate(marks) if marks else np.empty(0, dtype=np.uint8)
            if not ids:
                ids, segments = self._nothing()
            string = self._shown(whole, spell(whole.pieces))
            batch.add(ids, segments, string, truncated=cut)
        return batch

    def _text_ids(self, rows: Sequence[Row]) -> dict[str, Ids]:
        """Return the ids of the rows' texts that spell no control token."""
        texts = [
            piece.value
            for row in rows
            if not row.renamed
            for piece in row.pieces
            if piece.kind in ("text", "repeat")
        ]
        distinct = list(dict.fromkeys(texts))
        encodings = self._core.encode_batch(distinct, add_special_tokens=False)
        return {text: one.ids for text, one in zip(distinct, encodings, strict=True)}

    def _piece(self, piece: Piece, row: Row, texts: dict[str, Ids]) -> Ids:
        """Return the ids of one piece alone."""
        if piece.kind in ("eos", "bos", "mask"):
            token = getattr(self.tokenizer, f"{piece.kind}_token_id")
            return [] if token is None else [int(token)]
        if piece.kind in ("text", "repeat") and not row.renamed:
            return texts[piece.value]
        key = piece.value, row.renamed
        ids: Ids | None = self._piece_cache.get(key)
        if ids is None:
            if len(self._piece_cache) >= _CACHED_PIECES:
                self._piece_cache.clear()  # other threads may be looking into it
            ids = self._core_of(row).encode(piece.value, add_special_tokens=False).ids
            self._piece_cache[key] = ids
        return ids
