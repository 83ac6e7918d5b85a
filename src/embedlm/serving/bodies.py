"""What all bodies of requests share: a field that is not known is refused, never passed over."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from embedlm.errors import InputError
from embedlm.serving.encoding import Item, Text

__all__ = ["Body", "Count", "TokenIds", "items_of"]

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = list[TokenId]
Count = Annotated[int, Field(gt=0, lt=1 << 31)]


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


def items_of(texts: Any, instruction: str | list[str] | None = None) -> tuple[list[Item], bool]:
    """Return what is embedded, and whether it is rows of token ids.

    Args:
        texts: a string, a list of strings, a row of token ids, or a list of such rows.
        instruction: one for all texts, or one for each.

    Raises:
        InputError: an empty text or row, or another number of instructions than texts.
    """
    if isinstance(texts, str) or (texts and isinstance(texts[0], int)):
        texts = [texts]
    rows: list[Text] = [one if isinstance(one, str) else tuple(one) for one in texts]
    for index, row in enumerate(rows):
        if not row:
            raise InputError(f"input {index} is empty; leave it out")
    if isinstance(instruction, list):
        if len(instruction) != len(rows):
            raise InputError(
                f"{len(instruction)} instructions were given for {len(rows)} texts; give one, or "
                "one for each text"
            )
        instructions: list[str | None] = list(instruction)
    else:
        instructions = [instruction] * len(rows)
    ids = bool(rows) and not isinstance(rows[0], str)
    return list(zip(rows, instructions, strict=True)), ids
