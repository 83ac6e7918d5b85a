"""Texts in, token ids and a segment id per token out.

Two ways to the ids. Joined: the prompt is one string, tokenised once; spans of the template's
pieces are mapped to tokens by character offsets. Pieces: every piece is tokenised alone and the ids
are concatenated, as some references do. Truncation shortens the text, never the prompt, unless the
recipe says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, UnsupportedError, closest
from embedlm.prompt.filling import (
    chat_template,
    clean_text,
    join_blocks,
    spell,
    spell_demonstrations,
    strip_row,
)
from embedlm.prompt.segments import (
    SEGMENT_ID,
    Segments,
    count_boundary,
    mark,
    segment_of,
    straddling,
)
from embedlm.prompt.special import adds_eos
from embedlm.prompt.truncate import Ids, cut_ids, cut_parts
from embedlm.schema.prompt import Message, Prompt, Template
from embedlm.schema.recipe import Boundary
from embedlm.schema.template import Piece, parse_template

__all__ = ["SEGMENT_ID", "RenderedBatch", "Renderer", "Request"]

_SPECIAL, _EOS = SEGMENT_ID["special"], SEGMENT_ID["eos"]


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

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Request:
    """What one call asks of the renderer, the same for all its texts."""

    role: str | None = None
    demonstrations: tuple[dict[str, str], ...] | None = None
    max_length: int | None = None


class Renderer:
    """Renders texts by one prompt for one tokenizer."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: Prompt,
        *,
        boundary: Boundary = "offsets",
        limit: int | None = None,
        positions: int | None = None,
    ) -> None:
        """Take a fast tokenizer and a recipe's prompt.

        Args:
            tokenizer: of transformers, with a tokenizer.json.
            prompt: the recipe's.
            boundary: the recipe's `pooling.boundary`.
            limit: tokens that the model asks for, unless the recipe or the call says otherwise.
            positions: tokens that the model cannot exceed (a learned table ends there).
        """
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedError(
                f"{type(tokenizer).__name__} has no fast implementation (tokenizer.json); "
                "convert it with transformers first"
            )
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.boundary = boundary
        self.limit = limit
        self.positions = positions
        self._core = tokenizer.backend_tokenizer
        self._core.no_truncation()
        self._core.no_padding()
        self._adds_eos = adds_eos(tokenizer)
        self._piece_cache: dict[str, Ids] = {}

    # -- what the recipe says for a role ------------------------------------------------------

    def roles(self) -> list[str]:
        """Return the names that `role` may take."""
        return ["query", "document", *self.prompt.roles]

    def templates(self, role: str | None) -> list[str]:
        """Return the role's templates; several mean that their vectors are averaged."""
        template = self._template(role)
        if isinstance(template, str):
            return [template]
        if isinstance(template[0], Message):
            return [chat_template(template, self.tokenizer)]
        return [str(one) for one in template]

    def _template(self, role: str | None) -> Template:
        """Return the role's own template, or the next best that the recipe has."""
        prompt = self.prompt
        if role is not None and role not in self.roles():
            raise InputError(
                f"role {role!r} is not defined by this recipe; allowed: None, "
                f"{', '.join(map(repr, self.roles()))}.{closest(role, self.roles())}"
            )
        named = {"query": prompt.query, "document": prompt.document, **prompt.roles}
        of_role = named[role] if role else None
        candidates = (of_role, prompt.default, prompt.document, prompt.query)
        return next((t for t in candidates if t is not None), "{text}")

    def _is_chat(self, role: str | None) -> bool:
        template = self._template(role)
        chat = isinstance(template, tuple) and isinstance(template[0], Message)
        return chat and bool(getattr(self.tokenizer, "chat_template", None))

    def instruction(self, role: str | None) -> str:
        """Return the recipe's own instruction for the role."""
        instruction = self.prompt.instruction
        if isinstance(instruction, dict):
            return instruction.get(role or "default", "")
        return instruction or ""

    def max_length(self, role: str | None) -> int | None:
        """Return the recipe's own limit for the role, or the model's."""
        length = self.prompt.max_length
        if isinstance(length, dict):
            length = length.get(role or "default", length.get("document"))
        if length is None or self.prompt.truncate in ("slot", "pieces"):
            return length if length is not None else self.limit
        return min(length, self.limit) if self.limit else length

    # -- rendering ----------------------------------------------------------------------------

    def render(
        self,
        texts: Sequence[str],
        request: Request,
        instructions: Sequence[str] | None = None,
        *,
        segments: bool = True,
    ) -> list[RenderedBatch]:
        """Render every text by each of the role's templates.

        Args:
            texts: n strings.
            request: role, demonstrations and limit of the call.
            instructions: n strings; None takes the recipe's own.
            segments: whether the caller reads the segments (they cost time).
        """
        if instructions is None:
            instructions = [self.instruction(request.role)] * len(texts)
        limit = self._limit(request)
        demonstrations = spell_demonstrations(self.prompt, request.demonstrations)
        cleaned = [clean_text(text, self.prompt.clean) for text in texts]
        batches = []
        for template in self.templates(request.role):
            pieces = parse_template(template)
            self._check_slots(pieces, instructions, demonstrations)
            rows = [
                self._fill(pieces, text, instruction, demonstrations)
                for text, instruction in zip(cleaned, instructions, strict=True)
            ]
            if self.prompt.tokenize == "pieces":
                batches.append(self._pieces(rows, limit))
            else:
                special = self.prompt.special_tokens == "tokenizer"
                special = special and not self._is_chat(request.role)
                batches.append(self._joined(rows, limit, special, segments))
        for batch in batches:
            self._expand(batch, request.role)
        return batches

    def _expand(self, batch: RenderedBatch, role: str | None) -> None:
        """Fill the rows up with mask tokens, where the recipe says so and there is such a token."""
        expansion = self.prompt.expansion
        mask_id = getattr(self.tokenizer, "mask_token_id", None)
        if expansion is None or role != expansion.role or mask_id is None:
            return
        missing = [max(0, expansion.length - len(ids)) for ids in batch.ids]
        mask = SEGMENT_ID["mask"]
        batch.ids = [[*i, *[mask_id] * n] for i, n in zip(batch.ids, missing, strict=True)]
        batch.segments = [
            np.append(marks, np.full(n, mask, np.uint8))
            for marks, n in zip(batch.segments, missing, strict=True)
        ]
        batch.unseen = [] if expansion.attended else missing

    def _limit(self, request: Request) -> int | None:
        """Return the number of tokens that `prompt.truncate` counts for this call."""
        length = request.max_length
        if length is not None and length < 1:
            raise InputError(f"max_length is {length}; give a number of tokens above 0")
        limit = self.max_length(request.role) if length is None else length
        if self.positions is not None and self.prompt.truncate not in ("slot", "pieces"):
            limit = self.positions if limit is None else min(limit, self.positions)
        return limit

    def _check_slots(
        self, pieces: tuple[Piece, ...], instructions: Sequence[str], demonstrations: str
    ) -> None:
        kinds = {piece.kind for piece in pieces}
        default = self.prompt.instruction
        if "instruction" not in kinds and any(instructions) and default is None:
            raise InputError(
                "an instruction was given, but the recipe's template for this role has no "
                "{instruction}; leave it out or choose a recipe that takes one"
            )
        if demonstrations and "demonstrations" not in kinds:
            raise InputError(
                "demonstrations were given, but the recipe's template for this role has no "
                "{demonstrations}; leave them out or choose a recipe that takes them"
            )

    def _fill(
        self, pieces: tuple[Piece, ...], text: str, instruction: str, demonstrations: str
    ) -> list[Piece]:
        """Return the pieces with every slot's value, empty optional blocks left out."""
        values = {
            "text": text,
            "instruction": instruction,
            "demonstrations": demonstrations,
            "eos": self._token("eos"),
            "bos": self._token("bos"),
            "mask": "",
        }
        row: list[Piece] = []
        seen_text = False
        for piece in pieces:
            if piece.when and not values[piece.when]:
                continue
            if piece.kind == "literal":
                row.append(piece)
                continue
            if piece.kind == "mask":
                values["mask"] = self._mask()
            kind = "repeat" if piece.kind == "text" and seen_text else piece.kind
            seen_text = seen_text or piece.kind == "text"
            row.append(Piece(kind, values[piece.kind], piece.block, piece.when))
        return strip_row(row) if self.prompt.clean in ("prompteol", "strip_all") else row

    def _token(self, name: str) -> str:
        return str(getattr(self.tokenizer, f"{name}_token", None) or "")

    def _mask(self) -> str:
        token = self._token("mask")
        if not token:
            raise UnsupportedError(
                "the template has {mask}, but this tokenizer has no mask token; "
                "the recipe needs a masked language model such as BERT"
            )
        return token

    # -- joined -------------------------------------------------------------------------------

    def _joined(
        self, rows: list[list[Piece]], limit: int | None, special: bool, segments: bool
    ) -> RenderedBatch:
        ends_with_eos = [row[-1].kind == "eos" for row in rows]
        bodies = [row[:-1] if eos else row for row, eos in zip(rows, ends_with_eos, strict=True)]
        strings = [spell(row) for row in bodies]
        offsets = segments or self.boundary != "offsets"
        encode = self._core.encode_batch if offsets else self._core.encode_batch_fast
        encodings = encode(strings, add_special_tokens=special)
        batch = RenderedBatch([], [], strings, [])
        eos_id = self.tokenizer.eos_token_id
        appended = eos_id is not None and not (self._adds_eos and special)
        for row, encoding, eos, string in zip(
            bodies, encodings, ends_with_eos, strings, strict=True
        ):
            ids: Ids = encoding.ids
            tail = [eos_id] if eos and appended else []
            total = len(ids) + len(tail)
            cut = self._too_long(total, limit)
            if cut and not offsets:
                encoding = self._core.encode(string, add_special_tokens=special)
            marks = np.empty(0, dtype=np.uint8)
            shortened = False
            if offsets or cut:
                marks = self._marked(row, encoding, tail, eos, special)
            ids = ids + tail
            if cut:
                stays = np.append(straddling(row, encoding), np.zeros(len(tail), dtype=bool))
                ids, marks, shortened = self._cut_joined(ids, marks, limit, stays)
                if shortened and self.prompt.truncate == "turn":
                    row = self._written_out(row, ids, marks)
                    encoding = self._core.encode(spell(row), add_special_tokens=special)
                    marks = self._marked(row, encoding, tail, eos, special)
                    ids = encoding.ids + tail
            if not ids:
                ids, marks = self._nothing()
            batch.ids.append(ids)
            batch.segments.append(marks)
            batch.truncated.append(shortened)
        return batch

    def _marked(
        self, row: list[Piece], encoding: Any, tail: Ids, eos: bool, special: bool
    ) -> Segments:
        """Return the segments of a joined prompt's tokens and of the EOS appended to them."""
        marks = mark(row, encoding)
        if self.boundary != "offsets":
            count_boundary(row, marks, self._core, self.boundary, special)
        marks = np.append(marks, np.full(len(tail), _EOS, dtype=np.uint8))
        if eos and self._adds_eos and special and len(marks):
            marks[-1] = _EOS
        return marks

    def _written_out(self, row: list[Piece], ids: Ids, marks: Segments) -> list[Piece]:
        """Return the pieces with the text as its kept tokens spell it.

        FlagEmbedding cuts a turn, spells it and tokenises the whole anew: a character cut in two
        becomes a replacement character.
        """
        kept = [ids[index] for index in np.flatnonzero(marks == SEGMENT_ID["text"]).tolist()]
        text = self._core.decode(kept, skip_special_tokens=False)
        return [replace(piece, value=text) if piece.kind == "text" else piece for piece in row]

    def _too_long(self, total: int, limit: int | None) -> bool:
        """Tell whether a prompt of that many tokens may have to be cut."""
        slot = limit is not None and self.prompt.truncate == "slot"
        return slot or any(total > most for most in (limit, self.positions) if most is not None)

    def _cut_joined(
        self, ids: Ids, marks: Segments, limit: int | None, stays: npt.NDArray[np.bool_]
    ) -> tuple[Ids, Segments, bool]:
        rule, total = self.prompt.truncate, len(ids)
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

    def _pieces(self, rows: list[list[Piece]], limit: int | None) -> RenderedBatch:
        groups = [join_blocks(row) for row in rows]
        texts = [g.value for row in groups for g in row if g.kind in ("text", "repeat")]
        known = dict.fromkeys(texts)
        encoded = self._core.encode_batch(list(known), add_special_tokens=False)
        table: dict[str, Ids] = {k: e.ids for k, e in zip(known, encoded, strict=True)}
        batch = RenderedBatch([], [], [spell(row) for row in rows], [])
        for row in groups:
            parts = [self._piece(piece, table) for piece in row]
            kinds = [segment_of(piece) for piece in row]
            marks = [np.full(len(p), k, np.uint8) for p, k in zip(parts, kinds, strict=True)]
            cut = False
            if limit is not None:
                parts, marks, cut = cut_parts(parts, marks, limit, self.prompt.truncate)
            if self.positions is not None and sum(map(len, parts)) > self.positions:
                parts, marks, cut = cut_parts(parts, marks, self.positions, "text")
            ids = [token for part in parts for token in part]
            joined = np.concatenate(marks) if marks else np.empty(0, dtype=np.uint8)
            if not ids:
                ids, joined = self._nothing()
            batch.ids.append(ids)
            batch.segments.append(joined)
            batch.truncated.append(cut)
        return batch

    def _piece(self, piece: Piece, table: dict[str, Ids]) -> Ids:
        if piece.kind in ("eos", "bos", "mask"):
            token = getattr(self.tokenizer, f"{piece.kind}_token_id")
            return [] if token is None else [int(token)]
        if piece.kind in ("text", "repeat"):
            return table[piece.value]
        if piece.value not in self._piece_cache:
            if len(self._piece_cache) > 10_000:
                self._piece_cache.clear()
            ids = self._core.encode(piece.value, add_special_tokens=False).ids
            self._piece_cache[piece.value] = ids
        return self._piece_cache[piece.value]
