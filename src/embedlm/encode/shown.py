"""A rendered prompt as people and programs read it: tokens, their segments and their shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedlm.prompt.render import RenderedBatch
from embedlm.readout import Readout
from embedlm.readout.shares import shares
from embedlm.schema.recipe import SEGMENTS

__all__ = ["shown_prompts"]


def shown_prompts(
    rendered: RenderedBatch | Sequence[RenderedBatch], readout: Readout, role: str | None = None
) -> list[list[dict[str, Any]]]:
    """Return for each text its prompts, for JSON.

    A prompt has its `text`, `ids`, `tokens` (as the vocabulary spells them), `segments`,
    `truncated`, and `shares`: for each head how much each token counts, adding up to 1.

    Args:
        rendered: of `Embedder.render`, with segments.
        readout: of the same model.
        role: of the texts.
    """
    batches = [rendered] if isinstance(rendered, RenderedBatch) else rendered
    found: list[list[dict[str, Any]]] = [[] for _ in batches[0].ids]
    for batch in batches:
        by_head = shares(readout, batch.ids, batch.segments, role)
        for index, ids in enumerate(batch.ids):
            row = {
                "text": batch.text[index],
                "ids": ids,
                "tokens": readout.backbone.tokenizer.convert_ids_to_tokens(ids),
                "segments": [SEGMENTS[number] for number in batch.segments[index].tolist()],
                "truncated": batch.truncated[index],
                "shares": {
                    head: [round(share, 6) for share in parts[index].tolist()]
                    for head, parts in by_head.items()
                },
            }
            found[index].append(row)
    return found
