"""Images that records name: paths that lead into the folder of the records' own file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from embedlm.errors import InputError, ModelError
from embedlm.jobs.json_files import inner_path

__all__ = ["ImageFile", "image_file"]


class ImageFile(NamedTuple):
    """An image that a record names."""

    path: str
    digest: str
    """Of its content, by which a job that goes on knows whether it has changed."""


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
        path = inner_path(source.parent, value, source)
        content = path.read_bytes()
    except ModelError as error:  # that of a model's files has the same rule
        raise InputError(f"field {field!r}: {error}") from None
    except OSError as error:
        raise InputError(
            f"field {field!r}: the image {value!r} cannot be read ({error.strerror})"
        ) from None
    return ImageFile(str(path), hashlib.sha256(content).hexdigest())
