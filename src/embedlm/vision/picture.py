"""An image as a caller gives it (a path, the bytes of a file, a PIL image), and its pixels."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from os import PathLike
from typing import Any

from embedlm.errors import InputError, clipped, require
from embedlm.schema.arguments import short, usable_path

__all__ = ["Picture", "is_image", "picture_of"]

_ADDRESSES = ("http:", "https:", "data:", "file:")


def is_image(value: Any) -> bool:
    """Tell whether a value is an image of PIL's."""
    module = sys.modules.get("PIL.Image")  # without it there can be none
    return module is not None and isinstance(value, module.Image)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that can be opened; two of one source are equal."""

    key: Hashable
    source: Any = field(compare=False, repr=False)
    """What PIL opens: a path, bytes, or an image of PIL's."""
    name: str = field(compare=False)
    """What messages call it."""
    area: int = field(compare=False)
    """Pixels, as its header says."""
    forms: tuple[str, ...] | None = field(default=None, compare=False)
    """The forms of files that it may have, as PIL calls them; None: all that PIL reads."""

    def pixels(self) -> Any:
        """Return the image in RGB, upright as its EXIF data says, on white where it is transparent.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with _opened(self.source, self.forms) as image:
                return _in_rgb(image)
        except InputError as error:
            raise InputError(f"{self.name} {error}") from None
        except Exception as error:  # PIL's decoders raise whatever they meet
            raise _unreadable(self.name, error) from error


def picture_of(value: Any, what: str, forms: tuple[str, ...] | None = None) -> Picture:
    """Return an image that was given, its header read.

    Args:
        value: a path, the bytes of a file, or an image of PIL's.
        what: whose image it is, for messages.
        forms: of files that are read, as PIL calls them; None: all that it reads.

    Raises:
        InputError: something else, or what cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    require("PIL.Image", "image")
    name = f"the image of {what}"
    key: Hashable
    if is_image(value):
        key = ("image", id(value))
    elif isinstance(value, bytes | bytearray):
        value = bytes(value)
        key = ("bytes", value)
    elif isinstance(value, str | PathLike) and str(value):
        if str(value).startswith(_ADDRESSES):
            raise InputError(
                f"{name} is an address ({short(str(value))}), and nothing is downloaded; give the "
                "path of a file, its bytes, or a PIL image"
            )
        value = usable_path(value)
        name += f" ({str(value)!r})"
        if not value.is_file():
            raise InputError(f"{name} is not there; give the path of an image file")
        key = ("path", str(value))
    else:
        raise InputError(
            f"{name} is {type(value).__name__} ({short(value)}); give the path of a file, its "
            "bytes, or a PIL image"
        )
    try:
        with _opened(value, forms) as image:
            area = image.width * image.height
    except Exception as error:  # as above
        raise _unreadable(name, error) from error
    return Picture(key, value, name, area, forms)


def _opened(source: Any, forms: tuple[str, ...] | None) -> AbstractContextManager[Any]:
    """Return a context with the image of a source; a caller's own is not closed."""
    if is_image(source):
        return nullcontext(source)
    opened: AbstractContextManager[Any] = require("PIL.Image", "image").open(
        BytesIO(source) if isinstance(source, bytes) else source, formats=forms
    )
    return opened


def _in_rgb(image: Any) -> Any:
    """Return an image in RGB.

    Raises:
        InputError: its numbers are no shades from 0 to 255.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise InputError(
            f"has the mode {image.mode}, whose numbers are not shades from 0 to 255; convert it to "
            "8 bits first"
        )
    upright = require("PIL.ImageOps", "image").exif_transpose(image)
    if upright.has_transparency_data:
        shown = upright.convert("RGBA")
        paper = require("PIL.Image", "image").new("RGBA", shown.size, "white")
        paper.alpha_composite(shown)
        upright = paper
    return upright.convert("RGB")


def _unreadable(name: str, error: BaseException) -> InputError:
    said = " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ == "UnidentifiedImageError":
        said = "it has no form that Pillow knows"  # instead of the file's name once more
    return InputError(f"{name} cannot be read as an image: {clipped(said, 200)}")
