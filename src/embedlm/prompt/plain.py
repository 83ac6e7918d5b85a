"""A short way for the most frequent prompt: a text between two strings, and nothing to decide.

It gives what `Renderer.render` gives by the long way, or nothing; servers render a text at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedlm.prompt.filling import spell
from embedlm.prompt.rows import RenderedBatch
from embedlm.prompt.special import core_of, tokenizer_errors
from embedlm.schema.template import Piece

__all__ = ["Frame", "framed"]

_FIXED = ("literal", "text", "instruction", "demonstrations")
"""Pieces that a recipe and a request decide; the other ones a tokenizer may, later."""
_NO_MARKS = np.empty(0, dtype=np.uint8)
_NO_MARKS.flags.writeable = False


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around every text of a request."""

    before: str
    after: str
    most: int | None
    """Tokens of a prompt that need not be cut; None: any number."""

    @classmethod
    def of(cls, row: list[Piece], limits: Sequence[int | None]) -> Frame | None:
        """Return the frame of a filled template; None: it is more than that.

        Args:
            row: its pieces.
            limits: of the tokens.
        """
        places = [index for index, piece in enumerate(row) if piece.kind == "text"]
        if len(places) != 1 or any(one.kind not in _FIXED or one.when == "text" for one in row):
            return None
        most = min((one for one in limits if one is not None), default=None)
        return cls(spell(row[: places[0]]), spell(row[places[0] + 1 :]), most)


def framed(
    texts: Sequence[str],
    frame: Frame,
    tokenizer: Any,
    find: Callable[[str], str | None] | None,
    *,
    special: bool,
) -> RenderedBatch | None:
    """Return prompts without segments; None: a text of these needs the long way.

    Args:
        texts: as they are put into the template.
        frame: the rest of it.
        tokenizer: of transformers.
        find: finds a control token in a text; None: they may stand there.
        special: whether the tokenizer adds its own special tokens.

    Raises:
        ModelError: the tokenizer cannot tokenise a text.
    """
    if not texts or not all(texts):
        return None
    if find is not None and any(find(text) is not None for text in texts):
        return None
    prompts = [f"{frame.before}{text}{frame.after}" for text in texts]
    with tokenizer_errors():
        found = core_of(tokenizer).encode_batch_fast(prompts, add_special_tokens=special)
    ids = [encoding.ids for encoding in found]
    most = max(map(len, ids)) if frame.most is None else frame.most
    if not all(0 < len(row) <= most for row in ids):
        return None
    return RenderedBatch(ids, [_NO_MARKS] * len(ids), prompts, [False] * len(ids))
