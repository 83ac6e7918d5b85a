"""What a model reads: images, and how much of a text, so that it reads passages whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from embedlm.backbone.towers import TOWERS
from embedlm.errors import InputError
from embedlm.prompt.render import Request
from embedlm.prompt.segments import SEGMENT_ID
from embedlm.schema.template import parse_template
from embedlm.search.chunks import SIZE, Chunking
from embedlm.search.passages import Fits
from embedlm.vision import reads_images

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["fitted", "reads_pictures", "reads_texts", "reads_whole"]

_DOCUMENT = Request("document")


def reads_pictures(model: Embedder) -> bool:
    """Tell whether a model's documents may be images: by its network, and by its recipe."""
    own = model.route("document")
    if not reads_images(own.backbone):
        return False
    if str(own.backbone.config.model_type) in TOWERS:
        return True
    templates = own.renderer.templates("document")
    return all(any(p.kind == "image" for p in parse_template(one)) for one in templates)


def reads_texts(model: Embedder, role: str) -> bool:
    """Tell whether a model's prompts of a role take a text without an image."""
    templates = model.route(role).renderer.templates(role)
    pieces = [piece for one in templates for piece in parse_template(one)]
    return all(piece.kind != "image" or piece.when == "image" for piece in pieces)


def reads_whole(model: Embedder) -> Fits | None:
    """Return what tells whether a model reads all of a document; None: it has no limit."""
    room = _room(model)
    if room is None:
        return None

    def whole(text: str) -> bool:
        # A token holds a byte or more.
        return len(text.encode("utf-8", "replace")) <= room or not _shortened(model, text)

    return whole


def fitted(chunking: Chunking, model: Embedder) -> Chunking:
    """Return how documents are cut, with chunks that the model reads whole.

    Raises:
        InputError: the chunks that were asked for are longer than that.
    """
    room = _room(model)
    if chunking.size is not None and room is not None and chunking.size > room:
        raise InputError(
            f"chunks of {chunking.size} tokens, and {model.name!r} reads {room} of a text; give a "
            f"size (--chunk-size) of at most {room}, or a max_length (--max-length) that holds "
            "such chunks, prompt and all"
        )
    most = SIZE if room is None else min(SIZE, room)
    return replace(chunking, size=chunking.size or most)


def _room(model: Embedder) -> int | None:
    """Return the tokens that a document may have beside its prompt; None: as many as it likes."""
    renderer = model.route("document").renderer
    if not reads_texts(model, "document"):
        return None
    limit = renderer.max_length("document")
    if limit is None:
        return None
    batch = renderer.render([" a" * (2 * limit + 2)], _DOCUMENT)[0]
    if not batch.truncated[0]:
        return None
    return int((np.asarray(batch.segments[0]) == SEGMENT_ID["text"]).sum())


def _shortened(model: Embedder, text: str) -> bool:
    renderer = model.route("document").renderer
    batches = renderer.render([text], _DOCUMENT, segments=False)
    return any(batch.truncated[0] for batch in batches)
