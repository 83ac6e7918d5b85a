"""What a template has a place for, and what it needs."""

from __future__ import annotations

from collections.abc import Sequence

from embedlm.errors import InputError
from embedlm.schema.template import Piece

__all__ = ["check_images", "check_slot", "takes"]


def check_images(
    pieces: Sequence[Piece], texts: Sequence[str], images: Sequence[str], role: str | None
) -> None:
    """Refuse an image or a text that a template has no place for, and one that it lacks.

    Args:
        pieces: of the template.
        texts: that fill {text}.
        images: that fill {image}; "" for none.
        role: whose template it is.

    Raises:
        InputError: says what the role takes.
    """
    kinds = {piece.kind for piece in pieces}
    needed = any(piece.kind == "image" and piece.when != "image" for piece in pieces)
    name = "without a role" if role is None else f"for role {role!r}"
    for text, image in zip(texts, images, strict=True):
        if image and "image" not in kinds:
            raise InputError(
                f"the recipe's template {name} has no {{image}}: it takes a text alone. Leave the "
                "image out, or take a recipe (or a role) that reads images"
            )
        if needed and not image:
            raise InputError(
                f"the recipe's template {name} reads an image, and none was given; give "
                '{"image": ...}, or take another role, such as role="query" (encode_query)'
            )
        if text and "text" not in kinds:
            raise InputError(
                f"the recipe's template {name} has no {{text}}: it takes an image alone, and a "
                "text was given beside it; leave the text out"
            )


def takes(slot: str, pieces: Sequence[Piece]) -> bool:
    """Tell whether a template has a slot."""
    return any(piece.kind == slot for piece in pieces)


def check_slot(slot: str, told: str, given: bool, templates: Sequence[tuple[Piece, ...]]) -> None:
    """Refuse what a call gives and a template of its role has no place for.

    Args:
        slot: its name.
        told: what was given, as the error begins.
        given: whether it was.
        templates: of the role.

    Raises:
        InputError: so it is.
    """
    if given and not all(takes(slot, pieces) for pieces in templates):
        raise InputError(
            f"{told} given, but the recipe's template for this role has no {{{slot}}}; "
            "give none, or choose a recipe that has it"
        )
