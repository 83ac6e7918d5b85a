"""Texts in, token ids and a segment id per token out.

A recipe's prompt has a template for each role. Here its slots are filled; `rows.py` tokenises the
result. What fills a slot is text: a control token that it spells is not read as one, unless the
recipe says so (`prompt.special_tokens_in_text`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embedlm.errors import EmbedLMError, InputError, UnsupportedError, closest
from embedlm.prompt.chat import chat_template
from embedlm.prompt.control import ControlTokens
from embedlm.prompt.filling import (
    clean_instruction,
    fill_row,
    prepared,
    spell_demonstrations,
    strip_row,
)
from embedlm.prompt.plain import Frame, framed
from embedlm.prompt.request import Request, Usual
from embedlm.prompt.rows import RenderedBatch, Row, RowTokenizer
from embedlm.prompt.segments import SEGMENT_ID
from embedlm.prompt.slots import check_images, check_slot, takes
from embedlm.prompt.special import filling_token, lower_case
from embedlm.schema.arguments import short
from embedlm.schema.prompt import Message, Prompt, Template
from embedlm.schema.recipe import Boundary
from embedlm.schema.template import Piece, parse_template

__all__ = ["SEGMENT_ID", "RenderedBatch", "Renderer", "Request"]

_KNOWN = 64
"""Kinds of requests of which a renderer keeps what their texts share."""


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

        Raises:
            UnsupportedError: the tokenizer is a slow one, or queries are filled up beyond what the
                model has positions for.
        """
        length = 0 if prompt.expansion is None else prompt.expansion.length
        if positions is not None and length > positions:
            raise UnsupportedError(
                f"prompt.expansion fills queries up to {length} tokens, and the model has "
                f"positions for {positions}; give a smaller length"
            )
        self._control = ControlTokens(tokenizer)
        if prompt.clean == "lower":
            tokenizer = copy.deepcopy(tokenizer)
            lower_case(tokenizer)
            self._control = ControlTokens(tokenizer)
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.boundary = boundary
        self.limit = limit
        self.positions = positions
        self._known: dict[Any, Usual] = {}
        self._rows = RowTokenizer(tokenizer, prompt, self._control, boundary, positions)

    def with_prompt(self, prompt: Prompt) -> Renderer:
        """Return a renderer of the same tokenizer and limits by another prompt."""
        other = copy.copy(self)
        other.prompt = prompt
        other._known = {}
        other._rows = RowTokenizer(
            self.tokenizer, prompt, self._control, self.boundary, self.positions
        )
        return other

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
            turns = [turn for turn in template if isinstance(turn, Message)]
            return [chat_template(turns, self.tokenizer)]
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

    @property
    def _chat_template(self) -> str | None:
        template = getattr(self.tokenizer, "chat_template", None)
        return template if template is None or isinstance(template, str) else repr(template)

    def _is_chat(self, role: str | None) -> bool:
        template = self._template(role)
        chat = isinstance(template, tuple) and isinstance(template[0], Message)
        return chat and bool(self._chat_template)

    def instruction(self, role: str | None) -> str:
        """Return the recipe's own instruction for the role."""
        instruction = self.prompt.instruction
        if isinstance(instruction, dict):
            return instruction.get(role or "default", "")
        return instruction or ""

    def takes_instruction(self, role: str | None) -> bool:
        """Tell whether the templates of a role have an {instruction}."""
        return all(takes("instruction", parse_template(text)) for text in self.templates(role))

    def max_length(self, role: str | None) -> int | None:
        """Return the recipe's own limit for the role, or the model's."""
        length = self.prompt.max_length
        if isinstance(length, dict):
            other = None if role == "query" else length.get("document")
            length = length.get(role or "default", other)
        if length is None:
            return self.limit
        counts_all = self.prompt.truncate not in ("slot", "pieces")
        return min(length, self.positions) if counts_all and self.positions else length

    def check_room(
        self, role: str | None, max_length: int | None = None, instruction: str | None = None
    ) -> None:
        """Refuse a limit within which the prompt leaves no room for a text.

        Args:
            role: of the texts.
            max_length: of a call; None takes the recipe's or the model's.
            instruction: None takes the recipe's.

        Raises:
            InputError: it says how many tokens the prompt takes.
        """
        given = None if instruction is None else [instruction]
        try:
            self.render(["a"], Request(role, None, max_length), given, segments=False)
        except InputError as error:
            raise InputError(f"{f'role {role}' if role else 'texts'}: {error}") from error

    # -- rendering ----------------------------------------------------------------------------

    def render(
        self,
        texts: Sequence[str],
        request: Request,
        instructions: Sequence[str] | None = None,
        *,
        segments: bool = True,
        images: Sequence[str] = (),
    ) -> list[RenderedBatch]:
        """Render every text by each of the role's templates.

        Args:
            texts: n strings.
            request: role, demonstrations and limit of the call.
            instructions: n strings; None takes the recipe's own.
            segments: whether the caller reads the segments (they cost time).
            images: what stands for the image of each text, "" for none; empty: no text has one.
        """
        usual = self._usual(request)
        templates, request, limit = usual.templates, usual.request, usual.limit
        cleaned = prepared(texts, self.prompt, self.tokenizer, self.max_length(request.role))
        if usual.frame is not None and instructions is None and not (segments or images):
            find = None if self.prompt.special_tokens_in_text == "tokens" else self._control.find
            batch = framed(cleaned, usual.frame, self.tokenizer, find, special=usual.special)
            if batch is not None:
                return [batch]
        if instructions is None:
            instructions = [usual.instruction] * len(texts)
        else:
            check_slot("instruction", "an instruction was", any(instructions), templates)
            own, ending = self.instruction(request.role), self.prompt.instruction_end
            instructions = [clean_instruction(one, ending, own) for one in instructions]
        images = images or [""] * len(texts)
        cleaned = [
            text if text or image else self.prompt.empty
            for text, image in zip(cleaned, images, strict=True)
        ]
        slots = list(zip(cleaned, instructions, strict=True))
        renamed = self._renamed(slots, request)
        demonstrations = {name: self._demonstrations(request, name) for name in set(renamed)}
        batches = []
        for pieces in templates:
            check_images(pieces, cleaned, images, request.role)
            rows = [
                Row(self._fill(pieces, text, instruction, demonstrations[name], image, name), name)
                for (text, instruction), image, name in zip(slots, images, renamed, strict=True)
            ]
            batches.append(
                self._rows.tokenize(rows, limit, special=usual.special, segments=segments)
            )
        for batch in batches:
            self._expand(batch, request.role)
        return batches

    def _renamed(self, slots: Sequence[tuple[str, str]], request: Request) -> list[bool]:
        """Tell for each row whether its control tokens need other names, as its text spells some.

        Raises:
            InputError: a text spells a control token, and the recipe refuses that.
        """
        rule = self.prompt.special_tokens_in_text
        if rule == "tokens":
            return [False] * len(slots)
        shown = self._shown(request)
        spelled = {
            value: self._control.find(value)
            for value in {instruction for _, instruction in slots}.union(shown)
        }
        everywhere = next(filter(None, map(spelled.get, shown)), None)
        tokens = [
            everywhere or spelled[instruction] or self._control.find(text)
            for text, instruction in slots
        ]
        for (text, _), token in zip(slots, tokens, strict=True):
            if token is not None and rule == "refuse":
                raise InputError(
                    f"the text {short(text)}, its instruction or a demonstration spells the "
                    f"control token {token!r}, and the recipe's prompt.special_tokens_in_text is "
                    "refuse; take it out, or choose text (read as plain text) or tokens"
                )
        return [token is not None for token in tokens]

    def _shown(self, request: Request) -> list[str]:
        """Return what the demonstrations of a request say."""
        given = request.demonstrations
        shots = self.prompt.demonstrations if given is None else given
        return [value for shot in shots for value in shot.values()]

    def _demonstrations(self, request: Request, renamed: bool) -> str:
        """Return what {demonstrations} stands for in a row."""
        prompt = self.prompt
        if renamed and prompt.demonstration is not None:
            rename = self._control.renamed
            changes = {
                "demonstration": rename(prompt.demonstration),
                "separator": rename(prompt.separator),
            }
            prompt = prompt.model_copy(update=changes)
        return spell_demonstrations(prompt, request.demonstrations)

    def _expand(self, batch: RenderedBatch, role: str | None) -> None:
        """Fill the rows up with mask tokens, or with EOS where the tokenizer has none of these."""
        expansion = self.prompt.expansion
        if expansion is None or role != expansion.role:
            return
        mask_id = filling_token(self.tokenizer)
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

    def _usual(self, request: Request) -> Usual:
        """Return what all texts of such a request share; found once, unless it brings examples."""
        if request.demonstrations is not None:
            return self._shared(request)
        key = request.role, request.max_length, self._chat_template
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _KNOWN:
                self._known = {}
            found = self._known[key] = self._shared(request)
        return found

    def _shared(self, request: Request) -> Usual:
        """Return what all texts of a request share.

        What the recipe itself gives may be for other roles; demonstrations that none has a place
        for are refused.
        """
        role, prompt = request.role, self.prompt
        templates = [parse_template(template) for template in self.templates(role)]
        shots = self._shots(request)
        check_slot("demonstrations", "demonstrations were", bool(shots), templates)
        if not any(takes("demonstrations", pieces) for pieces in templates):
            request = replace(request, demonstrations=())  # the recipe's are for other roles
        own = self.instruction(role)
        instruction = clean_instruction(own, prompt.instruction_end, own)
        limit = self._limit(request)
        return Usual(
            templates,
            request,
            limit,
            instruction,
            special=prompt.special_tokens == "tokenizer" and not self._is_chat(role),
            frame=self._frame(templates, request, instruction, limit),
        )

    def _frame(
        self,
        templates: Sequence[tuple[Piece, ...]],
        request: Request,
        instruction: str,
        limit: int | None,
    ) -> Frame | None:
        """Return what stands around every text of a request; None: there is more to decide."""
        prompt = self.prompt
        expanded = prompt.expansion is not None and prompt.expansion.role == request.role
        cut = prompt.truncate == "slot" and limit is not None
        stripped = prompt.clean in ("prompteol", "strip_all")
        plain = prompt.tokenize == "joined" and self.boundary == "offsets"
        if len(templates) != 1 or expanded or cut or stripped or not plain:
            return None
        words = (instruction, *self._shown(request))
        if prompt.special_tokens_in_text != "tokens" and any(map(self._control.find, words)):
            return None
        try:
            shots = self._demonstrations(request, renamed=False)
            row = self._fill(templates[0], "a", instruction, shots, "", renamed=False)
        except EmbedLMError:  # which may be no error of the call's own instruction
            return None
        return Frame.of(row, (limit, self.positions))

    def _shots(self, request: Request) -> Sequence[Any]:
        """Return the demonstrations of a call, or the recipe's if they are for no role."""
        if request.demonstrations is not None or not self.prompt.demonstrations:
            return request.demonstrations or ()
        every = [text for role in (None, *self.roles()) for text in self.templates(role)]
        shown = any(takes("demonstrations", parse_template(text)) for text in every)
        return () if shown else self.prompt.demonstrations

    def _fill(
        self,
        pieces: tuple[Piece, ...],
        text: str,
        instruction: str,
        demonstrations: str,
        image: str,
        renamed: bool,
    ) -> list[Piece]:
        """Return the pieces with every slot's value, empty optional blocks left out.

        Args:
            pieces: of the template.
            text: fills {text}.
            instruction: fills {instruction}.
            demonstrations: fills {demonstrations}.
            image: fills {image}.
            renamed: whether the template's control tokens get their other names.
        """
        rename = self._control.renamed if renamed else None
        values = {"text": text, "instruction": instruction, "demonstrations": demonstrations}
        values["image"] = rename(image) if rename else image
        row = fill_row(pieces, values, self.tokenizer, rename)
        return strip_row(row) if self.prompt.clean in ("prompteol", "strip_all") else row
