"""Images in files: those that records name, and files that are images themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from embedlm.errors import InputError, ModelError
from embedlm.jobs.json_files import inner_path

__all__ = ["IMAGE_SUFFIXES", "ImageFile", "image_file", "read_image"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
"""How files end that are read as images."""


class ImageFile(NamedTuple):
    """An image in a file of its own."""

    path: str
    digest: str
    """Of its content, by which a job that goes on knows whether it has changed."""
    name: str
    """What the record says, or the file's name; it is shown."""


def image_file(value: Any, field: str, source: Path) -> ImageFile | None:
    """Return the image that a field of a record names; None: it names none.

    Args:
        value: of the field.
        field: its name.
        source: the file of the record.

    Raises:
        InputError: no path, one that leaves the file's folder, or a file that cannot be read.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InputError(f"field {field!r} is {type(value).__name__}, not the path of an image")
    try:
        return read_image(inner_path(source.parent, value, source), value)
    except (ModelError, InputError) as error:  # a path's rule is that of a model's files
        raise InputError(f"field {field!r}: {error}") from None


def read_image(path: Path, name: str) -> ImageFile:
    """Return the image that a file is.

    Args:
        path: of the file.
        name: what it is called.

    Raises:
        InputError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the image {name!r} cannot be read ({error.strerror})") from None
    return ImageFile(str(path), hashlib.sha256(content).hexdigest(), name)
