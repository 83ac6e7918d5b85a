"""Texts in, token ids and a segment id per token out.

Two ways to the ids. Joined: the prompt is one string, tokenised once; spans of the template's pieces
are mapped to tokens by character offsets. Pieces: every piece is tokenised alone and the ids are
concatenated, as some references do. Truncation shortens the text, never the prompt, unless the
recipe says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, RecipeError, UnsupportedError, closest
from embedlm.prompt.template import (
    DEMONSTRATION_SLOTS,
    Piece,
    chat_template,
    clean_text,
    fill,
    parse_template,
)
from embedlm.recipe import SEGMENTS, Message, Prompt, Template

__all__ = ["RenderedBatch", "Renderer", "Request"]

Ids = list[int]
Segments = npt.NDArray[np.uint8]
SEGMENT_ID = {name: index for index, name in enumerate(SEGMENTS)}
_SPECIAL, _TEXT, _REPEAT, _EOS = (SEGMENT_ID[s] for s in ("special", "text", "repeat", "eos"))
_SLOT_SEGMENT = {"literal": "literal", "bos": "special"}
# Where two pieces meet inside one token, the text wins, then the instruction.
_PRIORITY = np.zeros(len(SEGMENTS), dtype=np.uint8)
for _rank, _name in enumerate(("literal", "demonstrations", "instruction", "repeat", "text"), 1):
    _PRIORITY[SEGMENT_ID[_name]] = _rank
_CUTTABLE = (_TEXT, _REPEAT)


@dataclass(slots=True)
class RenderedBatch:
    """What the model will see, a row a text."""

    ids: list[Ids]
    """Token ids."""
    segments: list[Segments]
    """For each token the index of its segment in `embedlm.recipe.SEGMENTS`."""
    text: list[str]
    """The prompt as a string, before truncation."""
    truncated: list[bool] = field(default_factory=list)
    """Whether the row was shortened."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Request:
    """What one call asks of the renderer, the same for all its texts."""

    role: str | None = None
    demonstrations: tuple[dict[str, str], ...] | None = None
    max_length: int | None = None


def _tokenizer_adds_eos(tokenizer: Any) -> bool:
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(ids) and ids[-1] == tokenizer.eos_token_id and ids[-len(bare) :] != bare


class Renderer:
    """Renders texts by one prompt for one tokenizer."""

    def __init__(
        self,
        tokenizer: Any,
        prompt: Prompt,
        *,
        boundary: Literal["offsets", "count_prefix", "count_text"] = "offsets",
        limit: int | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedError(
                f"{type(tokenizer).__name__} has no fast implementation (tokenizer.json); "
                "convert it with transformers first"
            )
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.boundary = boundary
        self.limit = limit
        self._core = tokenizer.backend_tokenizer
        self._core.no_truncation()
        self._core.no_padding()
        self._adds_eos = _tokenizer_adds_eos(tokenizer)
        self._piece_cache: dict[tuple[str, int | None], Ids] = {}

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
        own = named[role] if role else None
        candidates = (own, prompt.default, prompt.document, prompt.query)
        return next((t for t in candidates if t is not None), "{text}")

    def _is_chat(self, role: str | None) -> bool:
        template = self._template(role)
        chat = isinstance(template, tuple) and isinstance(template[0], Message)
        return chat and bool(getattr(self.tokenizer, "chat_template", None))

    def instruction(self, role: str | None) -> str:
        """Return the recipe's own instruction for the role."""
        given = self.prompt.instruction
        if isinstance(given, dict):
            return given.get(role or "default", "")
        return given or ""

    def max_length(self, role: str | None) -> int | None:
        """Return the recipe's own limit for the role, or the model's."""
        given = self.prompt.max_length
        if isinstance(given, dict):
            given = given.get(role or "default", given.get("document"))
        if given is None or self.prompt.truncate in ("slot", "pieces"):
            return given if given is not None else self.limit
        return min(given, self.limit) if self.limit else given

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
        limit = request.max_length or self.max_length(request.role)
        if limit is not None and limit < 1:
            raise InputError(f"max_length is {limit}; give a number of tokens above 0")
        demonstrations = self._demonstrations(request.demonstrations)
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
        return batches

    def _check_slots(
        self, pieces: tuple[Piece, ...], instructions: Sequence[str], demonstrations: str
    ) -> None:
        kinds = {piece.kind for piece in pieces}
        own = self.prompt.instruction
        if "instruction" not in kinds and any(instructions) and own is None:
            raise InputError(
                "an instruction was given, but the recipe's template for this role has no "
                "{instruction}; leave it out or choose a recipe that takes one"
            )
        if demonstrations and "demonstrations" not in kinds:
            raise InputError(
                "demonstrations were given, but the recipe's template for this role has no "
                "{demonstrations}; leave them out or choose a recipe that takes them"
            )

    def _demonstrations(self, given: tuple[dict[str, str], ...] | None) -> str:
        shots = self.prompt.demonstrations if given is None else given
        template = self.prompt.demonstration
        if not shots:
            return ""
        if template is None:
            raise InputError(
                "demonstrations were given, but the recipe has no prompt.demonstration template"
            )
        for shot in shots:
            unknown = [key for key in shot if key not in DEMONSTRATION_SLOTS]
            if unknown:
                raise InputError(
                    f"a demonstration has the field {unknown[0]!r}; allowed: "
                    f"{', '.join(DEMONSTRATION_SLOTS)}"
                )
        return "".join(
            fill(template, dict(shot), DEMONSTRATION_SLOTS) + self.prompt.separator
            for shot in shots
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
        if self.prompt.clean == "prompteol":
            # The references strip the whole prompt; only a text at an end can hold white space.
            row[0] = replace(row[0], value=row[0].value.lstrip())
            row[-1] = replace(row[-1], value=row[-1].value.rstrip())
        return row

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
        strings = ["".join(piece.value for piece in row) for row in bodies]
        offsets = segments or self.boundary != "offsets"
        encode = self._core.encode_batch if offsets else self._core.encode_batch_fast
        encodings = encode(strings, add_special_tokens=special)
        batch = RenderedBatch([], [], strings, [])
        appended = not (self._adds_eos and special)
        for row, encoding, eos, string in zip(
            bodies, encodings, ends_with_eos, strings, strict=True
        ):
            ids: Ids = encoding.ids
            tail = [self.tokenizer.eos_token_id] if eos and appended else []
            cut = limit is not None and (
                self.prompt.truncate == "slot" or len(ids) + len(tail) > limit
            )
            if cut and not offsets:
                encoding = self._core.encode(string, add_special_tokens=special)
            if offsets or cut:
                marks = self._mark(row, encoding, special)
            else:
                marks = np.empty(0, dtype=np.uint8)
            if tail:
                ids = ids + tail
                marks = np.append(marks, np.uint8(_EOS)) if len(marks) else marks
            elif eos and len(marks):
                marks[-1] = _EOS
            shortened = False
            if cut and limit is not None:
                ids, marks, shortened = self._shorten(ids, marks, limit)
            if not ids:
                ids, marks = self._nothing()
            batch.ids.append(ids)
            batch.segments.append(marks)
            batch.truncated.append(shortened)
        return batch

    def _nothing(self) -> tuple[Ids, Segments]:
        """Return one token for an empty prompt, so that every text has a vector."""
        tokenizer = self.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0):
            if token is not None:
                break
        return [int(token)], np.array([_SPECIAL], dtype=np.uint8)

    def _mark(self, row: list[Piece], encoding: Any, special: bool) -> Segments:
        """Return the segment of each token of the joined string."""
        starts_ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        is_special = np.asarray(encoding.special_tokens_mask, dtype=bool)
        bounds = np.cumsum([0, *(len(piece.value) for piece in row)])
        kinds = np.array([_segment(piece) for piece in row], dtype=np.uint8)
        first = np.searchsorted(bounds, starts_ends[:, 0], side="right") - 1
        last = np.searchsorted(bounds, starts_ends[:, 1] - 1, side="right") - 1
        first = np.clip(first, 0, len(row) - 1)
        last = np.clip(np.maximum(last, first), 0, len(row) - 1)
        marks = kinds[last]
        for index in np.flatnonzero(last > first):
            inside = kinds[first[index] : last[index] + 1]
            marks[index] = inside[np.argmax(_PRIORITY[inside])]
        # The widths say nothing of tokens without characters: BOS, CLS, SEP.
        marks[is_special] = _SPECIAL
        if self.boundary != "offsets":
            self._count(row, marks, special)
        return marks

    def _count(self, row: list[Piece], marks: Segments, special: bool) -> None:
        """Find the text by counting tokens, as some references do, in place of offsets."""
        place = next(i for i, piece in enumerate(row) if piece.kind == "text")
        total = len(marks)
        if self.boundary == "count_text":
            count = len(self._encode(row[place].value, None))
            start = max(total - count, 0)
        else:
            prefix = "".join(piece.value for piece in row[:place])
            encoding = self._core.encode(prefix, add_special_tokens=special)
            trailing = 0
            for flag in reversed(encoding.special_tokens_mask):
                if not flag or trailing == len(encoding.ids) - 1:
                    break
                trailing += 1
            start = len(encoding.ids) - trailing if prefix else int(np.sum(marks == _SPECIAL) > 0)
            if not prefix:
                start = _leading(marks == _SPECIAL)
        before = marks[:start]
        before[before == _TEXT] = SEGMENT_ID["literal"]
        after = marks[start:]
        after[after != _EOS] = np.where(
            after[after != _EOS] == _SPECIAL, _SPECIAL, _TEXT
        )

    def _shorten(
        self, ids: Ids, marks: Segments, limit: int
    ) -> tuple[Ids, Segments, bool]:
        """Cut the ids to the limit by the rule `prompt.truncate`."""
        if self.prompt.truncate == "end":
            return ids[:limit], marks[:limit], len(ids) > limit
        counts = [int(np.sum(marks == kind)) for kind in _CUTTABLE]
        copies = sum(1 for count in counts if count)
        if self.prompt.truncate == "slot":
            keep = [min(count, limit) for count in counts]
        else:
            room = limit - (len(ids) - sum(counts))
            if room < max(copies, 0) or (room < 1 and not copies):
                raise InputError(
                    f"the prompt alone takes {len(ids) - sum(counts)} tokens, which leaves no "
                    f"room for the text within max_length {limit}; give a larger max_length"
                )
            keep = [min(count, room // max(copies, 1)) for count in counts]
        chosen = np.ones(len(ids), dtype=bool)
        for kind, count in zip(_CUTTABLE, keep, strict=True):
            chosen[np.flatnonzero(marks == kind)[count:]] = False
        if chosen.all():
            return ids, marks, False
        return [i for i, ok in zip(ids, chosen.tolist(), strict=True) if ok], marks[chosen], True

    # -- pieces -------------------------------------------------------------------------------

    def _encode(self, text: str, limit: int | None) -> Ids:
        ids: Ids = self._core.encode(text, add_special_tokens=False).ids
        return ids[:limit] if limit else ids

    def _pieces(self, rows: list[list[Piece]], limit: int | None) -> RenderedBatch:
        groups = [_blocks(row) for row in rows]
        texts = [g.value for row in groups for g in row if g.kind in ("text", "repeat")]
        known = dict.fromkeys(texts)
        encoded = self._core.encode_batch(list(known), add_special_tokens=False)
        table: dict[str, Ids] = {k: e.ids for k, e in zip(known, encoded, strict=True)}
        batch = RenderedBatch([], [], ["".join(p.value for p in row) for row in rows], [])
        for row in groups:
            parts = [self._piece(piece, table) for piece in row]
            marks = [np.full(len(p), _segment(g), np.uint8) for p, g in zip(parts, row, strict=True)]
            cut = False
            if limit is not None:
                parts, marks, cut = self._shorten_pieces(row, parts, marks, limit)
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
        key = (piece.value, None)
        if key not in self._piece_cache:
            if len(self._piece_cache) > 10_000:
                self._piece_cache.clear()
            self._piece_cache[key] = self._encode(piece.value, None)
        return self._piece_cache[key]

    def _shorten_pieces(
        self, row: list[Piece], parts: list[Ids], marks: list[Segments], limit: int
    ) -> tuple[list[Ids], list[Segments], bool]:
        """Cut the pieces to the limit by the rule `prompt.truncate`."""
        rule = self.prompt.truncate
        total = sum(map(len, parts))
        if rule == "end":
            ids = [token for part in parts for token in part][:limit]
            return [ids], [np.concatenate(marks)[:limit]], total > limit
        texts = [i for i, piece in enumerate(row) if piece.kind in ("text", "repeat")]
        if rule == "text":
            if total <= limit:
                return parts, marks, False
            room = limit - (total - sum(len(parts[i]) for i in texts))
            if room < len(texts):
                raise InputError(
                    f"the prompt alone takes {limit - room} tokens, which leaves no room for the "
                    f"text within max_length {limit}; give a larger max_length"
                )
            limits = {i: room // len(texts) for i in texts}
        else:
            limits = dict.fromkeys(texts if rule == "slot" else range(len(row)), limit)
        parts = [part[: limits.get(i)] for i, part in enumerate(parts)]
        marks = [mark[: limits.get(i)] for i, mark in enumerate(marks)]
        return parts, marks, sum(map(len, parts)) < total


def _leading(flags: npt.NDArray[np.bool_]) -> int:
    """Return how many flags are set before the first that is not."""
    return int(np.argmin(flags)) if len(flags) and not flags.all() else len(flags)


def _segment(piece: Piece) -> int:
    return SEGMENT_ID[_SLOT_SEGMENT.get(piece.kind, piece.kind)]


def _blocks(row: list[Piece]) -> list[Piece]:
    """Join the pieces of each optional block, which is tokenised as one."""
    joined: list[Piece] = []
    for piece in row:
        if joined and piece.block and piece.block == joined[-1].block:
            joined[-1] = replace(joined[-1], kind=piece.when, value=joined[-1].value + piece.value)
        else:
            joined.append(replace(piece, kind=piece.when) if piece.block else piece)
    return joined


def known_slots(prompt: Prompt) -> dict[str, Any]:
    """Return the templates of the prompt by role, for showing."""
    if not any((prompt.default, prompt.query, prompt.document, prompt.roles)):
        raise RecipeError("the recipe has no template")
    return {"default": prompt.default, "query": prompt.query, "document": prompt.document}
