"""Token ids in the place of texts: no prompt, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.backbone import Backbone
from embedlm.errors import InputError
from embedlm.prompt.render import RenderedBatch, Request
from embedlm.prompt.segments import SEGMENT_ID, Segments
from embedlm.schema.arguments import short

__all__ = ["as_rendered", "segments_of"]


def as_rendered(
    rows: Sequence[tuple[int, ...]], instruction: str | None, request: Request, backbone: Backbone
) -> tuple[RenderedBatch, list[npt.NDArray[np.int64]]]:
    """Return rows of ids as what a renderer gives, and the ids that a text's words have.

    All tokens count as text but special ones, EOS and mask, which a pooling finds as in a prompt.

    Raises:
        InputError: ids that the model does not have, too many of them, or something to write around
            them.
    """
    if instruction is not None or request.demonstrations is not None:
        raise InputError(
            "token ids are run as they are: no instruction or demonstrations can be written around "
            "them; give texts, or ids that hold the prompt"
        )
    limit = request.max_length or backbone.max_positions
    segments, words = [], []
    for row in rows:
        wrong = next((one for one in row if not 0 <= one < backbone.vocab_size), None)
        if wrong is not None:
            raise InputError(
                f"token id {short(wrong)} is not in the vocabulary (0 to {backbone.vocab_size - 1})"
            )
        ids = np.array(row, dtype=np.int64)
        if limit is not None and len(ids) > limit:
            raise InputError(f"a row of {len(ids)} token ids is longer than {limit}; cut it")
        segments.append(segments_of(ids, backbone.tokenizer))
        words.append(np.unique(ids[~np.isin(ids, backbone.tokenizer.all_special_ids)]))
    batch = RenderedBatch([list(row) for row in rows], segments, [""] * len(rows))
    return batch, words


def segments_of(ids: npt.NDArray[np.int64], tokenizer: Any) -> Segments:
    """Return the segment of each token of a bare row: text, or special, EOS and mask."""
    marks = np.full(len(ids), SEGMENT_ID["text"], dtype=np.uint8)
    marks[np.isin(ids, tokenizer.all_special_ids)] = SEGMENT_ID["special"]
    for name in ("eos", "mask"):
        marks[ids == getattr(tokenizer, f"{name}_token_id")] = SEGMENT_ID[name]
    return marks
