"""What is embedded: items made of parts, each with the cost by which they are ordered.

A text, a text with an image beside it and a row of token ids are the parts that there are today; a
further kind is a further class with a cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedlm.vision.picture import Picture

__all__ = ["Item", "Part", "Pictured", "Share", "Text", "TokenIds"]

_AREA = 256
"""Pixels of an image that are about as much work as a character: some 4 are a token."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that a prompt is written around."""

    text: str

    @property
    def cost(self) -> int:
        """Its length in characters."""
        return len(self.text)


@dataclass(frozen=True, slots=True)
class Pictured:
    """An image, and the text beside it."""

    text: str
    """May be empty."""
    image: Picture

    @property
    def cost(self) -> int:
        """Its length in characters, the image's share of them included."""
        return len(self.text) + self.image.area // _AREA


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids that are run as they are: no prompt is written around them."""

    ids: tuple[int, ...]

    @property
    def cost(self) -> int:
        """Their number."""
        return len(self.ids)


Part = Text | Pictured | TokenIds


@dataclass(frozen=True, slots=True)
class Item:
    """What one output is made of."""

    part: Part
    instruction: str | None = None
    """None: the recipe's."""

    @property
    def cost(self) -> int:
        """About how much work it is, in units that are the same for all items of one kind."""
        return self.part.cost


@dataclass(frozen=True, slots=True)
class Share:
    """An item that counts for a share of one output; the shares of an output add up to 1."""

    item: Item
    target: int
    """Number of the output."""
    weight: float = 1.0
