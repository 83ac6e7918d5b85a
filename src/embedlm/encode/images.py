"""Items with images: which of them run together, and what the network reads of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedlm.backbone import Backbone
from embedlm.backbone.images import Pixels
from embedlm.encode.executor import Executor
from embedlm.encode.items import Item, Pictured, Share
from embedlm.errors import InputError, UnsupportedError
from embedlm.prompt.render import SEGMENT_ID, RenderedBatch, Request
from embedlm.readout import Readout

__all__ = ["check_tokens", "chunked", "of_tower", "pixels_of"]

CHUNK = 2048
"""Texts rendered at once, while the chunk before is run."""
IMAGES = 16
"""Images read at once: the patches of a large one take some 40 MB."""


def chunked(shares: Sequence[Share]) -> list[list[Share]]:
    """Return shares in chunks that are rendered at once; none holds texts and images.

    Chunks of like length make packs with little waste and runs of equal lengths.
    """
    ordered = sorted(shares, key=lambda share: share.item.cost)
    texts = [share for share in ordered if not isinstance(share.item.part, Pictured)]
    images = [share for share in ordered if isinstance(share.item.part, Pictured)]
    return [
        kind[start : start + size]
        for kind, size in ((texts, CHUNK), (images, IMAGES))
        for start in range(0, len(kind), size)
    ]


def pixels_of(items: Sequence[Item], executor: Executor, readout: Readout) -> list[Pixels]:
    """Return the images of a chunk as the network reads them; empty: it has none.

    Raises:
        InputError: one cannot be read.
        UnsupportedError: the network, or the recipe's pooling, takes texts alone.
    """
    parts = [item.part for item in items if isinstance(item.part, Pictured)]
    if parts and readout.pooling.denoise:
        raise UnsupportedError(
            "pooling.denoise runs the prompt without its text, which says nothing of an image; set "
            "it to false"
        )
    options = readout.recipe.image
    return [executor.image_reader.read(part.image, options) for part in parts]


def of_tower(items: Sequence[Item], pixels: Sequence[Pixels], request: Request) -> RenderedBatch:
    """Return rows for images that have a tower of their own, and so no prompt around them.

    Raises:
        InputError: a text or an instruction beside an image, which nothing would read.
    """
    for item in items:
        beside = item.part.text if isinstance(item.part, Pictured) else ""
        if beside or item.instruction or request.demonstrations:
            what = "a text" if beside else "an instruction or a demonstration"
            raise InputError(
                f"{what} was given beside an image, and the model has a tower for each, of which "
                "none reads both; give texts and images as items of their own"
            )
    mark = np.array([SEGMENT_ID["image"]], dtype=np.uint8)
    rows = len(items)
    batch = RenderedBatch([[0]] * rows, [mark] * rows, [""] * rows, [False] * rows)
    batch.pixels = list(pixels)
    return batch


def check_tokens(
    batches: Sequence[RenderedBatch],
    items: Sequence[Item],
    pixels: Sequence[Pixels],
    backbone: Backbone,
) -> None:
    """Give rendered rows their images, whose tokens must all be there.

    Raises:
        InputError: a row was shortened so far that it lost some, or its text has some of its own.
    """
    token = backbone.config.image_token_id
    for batch in batches:
        batch.pixels = list(pixels)
        for ids, item, own in zip(batch.ids, items, pixels, strict=True):
            found = ids.count(token)
            if found != own.tokens:
                name = item.part.image.name if isinstance(item.part, Pictured) else "an image"
                raise InputError(
                    f"{name} takes {own.tokens} tokens, and {found} of them are in its prompt of "
                    f"{len(ids)}; give a larger max_length, a smaller image (image.max_pixels), or "
                    "take the image's token out of the text"
                )
