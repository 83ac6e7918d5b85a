"""Items whose texts are rewritten before they are embedded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from embedlm.encode.items import Item, Pictured, Share, Text
from embedlm.errors import InputError
from embedlm.schema.recipe import Transform
from embedlm.transform.geneol import transform_texts

__all__ = ["transform_items"]


def transform_items(
    items: Sequence[Item], config: Transform, generator: Any, *, show_progress: bool | None = None
) -> list[Share]:
    """Return each item's text and its variants as equal shares of one output.

    Variants that are the same, as where the text itself replaces some, are one share of their sum.
    Rows of token ids, which no call mixes with texts, are embedded as they are.

    Args:
        items: number i becomes output i.
        config: the recipe's transform.
        generator: see `transform_texts`.
        show_progress: None shows a bar for long jobs on a terminal.

    Raises:
        InputError: there are images among them.
    """
    if any(isinstance(item.part, Pictured) for item in items):
        raise InputError(
            "the recipe rewrites texts before they are embedded, and an image was given; take "
            "another recipe"
        )
    texts = [item.part.text for item in items if isinstance(item.part, Text)]
    if len(texts) < len(items):
        return [Share(item, index) for index, item in enumerate(items)]
    variants = transform_texts(texts, config, generator, show_progress=show_progress)
    return [
        Share(Item(Text(text), item.instruction), index, count / (1 + len(rewritten)))
        for index, (item, original, rewritten) in enumerate(
            zip(items, texts, variants, strict=True)
        )
        for text, count in Counter((original, *rewritten)).items()
    ]
