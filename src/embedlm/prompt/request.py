"""What a call asks of the renderer, and what all texts of such calls share."""

from __future__ import annotations

from dataclasses import dataclass

from embedlm.prompt.plain import Frame
from embedlm.schema.template import Piece

__all__ = ["Request", "Usual"]


@dataclass(frozen=True, slots=True)
class Request:
    """What one call asks of the renderer, the same for all its texts."""

    role: str | None = None
    demonstrations: tuple[dict[str, str], ...] | None = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Usual:
    """What all texts of a request share."""

    templates: list[tuple[Piece, ...]]
    request: Request
    """Without demonstrations where no template has a place for them."""
    limit: int | None
    """The tokens that `prompt.truncate` counts."""
    instruction: str
    """Of the recipe, cleaned up."""
    special: bool
    """Whether joined prompts get the tokenizer's own special tokens."""
    frame: Frame | None
    """Of the prompt, where it is no more than a text in one."""
