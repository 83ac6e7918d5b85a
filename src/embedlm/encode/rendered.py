"""Texts that are rendered before they are encoded, so that each is tokenised once.

A server has to know how long a text is before it may run it. What that gave is handed to `encode`
in the text's place; where the call would render it otherwise, it is rendered anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from embedlm.encode.inputs import check_demonstrations, check_instructions, check_texts
from embedlm.encode.items import Part, Text
from embedlm.prompt.render import RenderedBatch, Renderer, Request
from embedlm.schema.arguments import check_arguments

__all__ = ["Detached", "Rendered", "joined", "rendered"]


@dataclass(frozen=True, slots=True)
class _Way:
    """How texts were rendered."""

    renderer: Renderer
    request: Request
    segments: bool
    """Whether the tokens' segments were found."""

    def serves(self, renderer: Renderer, request: Request, *, segments: bool) -> bool:
        """Tell whether a call that asks for these finds what it needs."""
        same = self.renderer is renderer and self.request == request
        return same and (self.segments or not segments)


@dataclass(frozen=True, slots=True)
class Rendered(Text):
    """A text with what the model will see of it; equal to another of the same text."""

    batches: Sequence[RenderedBatch] = field(compare=False)
    """One for each of the recipe's prompts."""
    row: int = field(compare=False)
    """Which row of them it is."""
    way: _Way = field(compare=False)

    @property
    def tokens(self) -> int:
        """That the model reads, over all prompts."""
        return sum(len(batch.ids[self.row]) for batch in self.batches)

    @property
    def kept(self) -> int:
        """Tokens of its longest prompt."""
        return max(len(batch.ids[self.row]) for batch in self.batches)

    @property
    def truncated(self) -> bool:
        """Whether it was shortened."""
        return any(batch.truncated[self.row] for batch in self.batches)


def rendered(
    renderer: Renderer,
    texts: Any,
    role: str | None = None,
    instruction: str | Sequence[str] | None = None,
    demonstrations: Any = None,
    *,
    max_length: int | None = None,
    segments: bool = True,
) -> list[Rendered]:
    """Return texts rendered for `encode`, whose arguments these are.

    Args:
        renderer: of the embedder.
        texts: as of `encode`, but for token ids.
        role: see `encode`.
        instruction: see `encode`.
        demonstrations: see `encode`.
        max_length: see `encode`.
        segments: whether the readout asks which segment a token belongs to.

    Raises:
        InputError: texts or options that cannot be used.
    """
    check_arguments("encode", role=role, max_length=max_length)
    checked = check_texts(texts)
    request = Request(role, check_demonstrations(demonstrations), max_length)
    instructions = check_instructions(instruction, len(checked))
    batches = renderer.render(checked.texts, request, instructions, segments=segments)
    way = _Way(renderer, request, segments)
    return [Rendered(text, batches, row, way) for row, text in enumerate(checked.texts)]


@dataclass(frozen=True, slots=True)
class Detached:
    """Rendered texts without what rendered them, to be sent to a process that has its like."""

    texts: list[str]
    batches: list[RenderedBatch]
    request: Request
    segments: bool

    @classmethod
    def of(cls, parts: Sequence[Any]) -> Detached | None:
        """Return texts that were all rendered in one way; None: they were not."""
        first = parts[0] if parts else None
        if not isinstance(first, Rendered):
            return None
        way = first.way
        batches = joined(parts, way.renderer, way.request, segments=way.segments)
        if batches is None:
            return None
        return cls([one.text for one in parts], batches, way.request, way.segments)

    def by(self, renderer: Renderer) -> list[Rendered]:
        """Return them as this renderer's."""
        way = _Way(renderer, self.request, self.segments)
        return [Rendered(text, self.batches, row, way) for row, text in enumerate(self.texts)]


def joined(
    parts: Sequence[Part], renderer: Renderer, request: Request, *, segments: bool
) -> list[RenderedBatch] | None:
    """Return the rows of texts that were rendered as a call asks; None: not all of them were."""
    rows: list[Rendered] = []
    for part in parts:
        if not isinstance(part, Rendered):
            return None
        if not part.way.serves(renderer, request, segments=segments):
            return None
        rows.append(part)
    return [_batch(rows, number) for number in range(len(rows[0].batches))] if rows else None


def _batch(rows: Sequence[Rendered], number: int) -> RenderedBatch:
    """Return the rows of one prompt."""
    places = [(one.batches[number], one.row) for one in rows]
    unseen = [batch.unseen[row] if batch.unseen else 0 for batch, row in places]
    return RenderedBatch(
        [batch.ids[row] for batch, row in places],
        [batch.segments[row] for batch, row in places],
        [batch.text[row] for batch, row in places],
        [batch.truncated[row] for batch, row in places],
        unseen if any(unseen) else [],
    )
