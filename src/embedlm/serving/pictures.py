"""Images that requests bring: always in the request itself, and within limits.

Nothing is fetched, and no file of the server is read: an image is base64, or a data: URI. Its form
is one of a few whose decoders read nothing else, and its header says how large it is before any of
it is unpacked.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedlm.backbone.images import Pixels
from embedlm.embedder import Embedder
from embedlm.encode.images import check_tokens, of_tower
from embedlm.encode.items import Item, Pictured
from embedlm.errors import InputError
from embedlm.prompt.render import Request
from embedlm.serving.failures import RequestError, TooLargeError, called
from embedlm.vision import picture_of

if TYPE_CHECKING:
    from embedlm.serving.encoding import Served

__all__ = ["FORMS", "any_pictured", "check_pixels", "check_sight", "measured", "pictured"]

FORMS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_HOW = "send a PNG, JPEG, WebP, GIF or BMP as data:image/png;base64,..."


def pictured(value: str, text: str, what: str) -> Pictured:
    """Return an image that a request brings, its header read, and the text beside it.

    Args:
        value: base64, as it is or as a data: URI.
        text: "" for none.
        what: whose image it is, for messages.

    Raises:
        RequestError: an address, what is no base64, or an image of no form that is read.
    """
    name = f"the image of {what}"
    content = value
    if value[:5].lower() == "data:":
        about, comma, content = value.partition(",")
        if not comma or not about.lower().endswith(";base64"):
            raise RequestError(f"{name} is a data: URI without base64; {_HOW}")
    elif "://" in value[:32]:
        raise RequestError(f"{name} is an address, and nothing is downloaded; {_HOW}")
    try:
        found = b64decode(content, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"{name} is no base64 ({error}); {_HOW}") from error
    try:
        return Pictured(text, picture_of(found, what, FORMS))
    except InputError as error:
        raise RequestError(f"{error}; {_HOW}") from error


def check_sight(served: Served, role: str | None) -> None:
    """Refuse a request for images where the model reads texts alone, whatever it brings.

    Raises:
        UnsupportedError: it does.
    """
    with called(served.places):
        served.model.route(role).executor.image_reader  # noqa: B018  # it is opened, or refused


def any_pictured(items: Sequence[tuple[Any, str | None]]) -> bool:
    """Tell whether there are images among items."""
    return any(isinstance(one, Pictured) for one, _ in items)


def check_pixels(items: Sequence[tuple[Any, str | None]], most: int) -> None:
    """Refuse a request whose images have too many pixels, before any of them is unpacked.

    Raises:
        TooLargeError: says how many there are.
    """
    pixels = sum(one.image.area for one, _ in items if isinstance(one, Pictured))
    if pixels > most:
        raise TooLargeError(
            f"the images of the request have {pixels:,} pixels, and {most:,} are allowed; send "
            "smaller or fewer ones"
        )


def measured(model: Embedder, item: Item, request: Request) -> tuple[int, bool]:
    """Return the tokens that a model reads of an image and its text, and whether it was shortened.

    Args:
        model: of the item's role.
        item: an image.
        request: its role, demonstrations and limit.

    Raises:
        InputError: a damaged image, one that the model does not take, or one without room.
        UnsupportedError: the model reads texts alone.
    """
    part, backbone = item.part, model.backbone
    assert isinstance(part, Pictured)
    reader = model.executor.image_reader
    width, height = part.image.pixels().size
    count = reader.count(width, height, model.recipe.image)
    if reader.token is None:
        of_tower([item], [], request)
        eyes = backbone.config.vision_config
        return (eyes.image_size // eyes.patch_size) ** 2 + 1, False
    instructions = None if item.instruction is None else [item.instruction]
    batches = model.renderer.render(
        [part.text], request, instructions, segments=False, images=[reader.token * count]
    )
    check_tokens(batches, [item], [Pixels({}, count, on_grid=False)], backbone)
    return sum(len(one.ids[0]) for one in batches), any(one.truncated[0] for one in batches)
