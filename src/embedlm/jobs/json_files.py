"""JSON in files: whole files, and logs with one object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from embedlm.errors import EmbedLMError, ModelError
from embedlm.jobs.atomic import disk_errors, write_text
from embedlm.jobs.names import real_path

__all__ = [
    "append_json",
    "inner_path",
    "json_text",
    "optional_json",
    "read_json",
    "read_log",
    "read_object",
    "why_not_json",
    "write_json",
]


def json_text(value: Any, **options: Any) -> str:
    """Return a value as JSON, in which NaN and infinity, which JSON lacks, are null.

    Args:
        value: what `json.dumps` takes.
        **options: of `json.dumps`.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_json(
    path: Path,
    error: type[EmbedLMError] = ModelError,
    remedy: str = "correct the file, or put a whole one in its place",
) -> Any:
    """Return a JSON file's content. A model's may hold no key twice, and no NaN or infinity.

    Args:
        path: the file.
        error: raised where the file cannot be read or is not JSON.
        remedy: what the caller can do then, for the message.

    Raises:
        ModelError: or `error`; the message names the file.
    """
    try:
        text = path.read_text(encoding="utf-8" if error is ModelError else "utf-8-sig")
        return json.loads(text, **_STRICT) if error is ModelError else json.loads(text)
    except FileNotFoundError as reason:
        raise error(f"the file {str(path)!r} is not there; check its name") from reason
    except OSError as reason:
        told = reason.strerror or reason
        raise error(f"{path} cannot be read as JSON: {told}; {remedy}") from reason
    except (ValueError, RecursionError) as reason:
        told = f"it is not valid JSON ({why_not_json(reason)})"
        raise error(f"{path} cannot be read as JSON: {told}; {remedy}") from reason


def why_not_json(error: Exception) -> str:
    """Return in words what `json.loads`, or the decoding before it, objects to."""
    if isinstance(error, UnicodeDecodeError):
        return f"not valid UTF-8 at byte {error.start}"
    if isinstance(error, RecursionError):
        return "too many lists and objects inside each other"
    return str(error)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields, each of which may stand there once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_STRICT: dict[str, Any] = {"object_pairs_hook": _once, "parse_constant": _no_constant}


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a model's JSON file holds.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, not an object of JSON, {{...}}")
    return value


def optional_json(path: Path) -> dict[str, Any]:
    """Return the object that a model's JSON file holds; an empty one where there is no file."""
    return read_object(path) if path.is_file() else {}


def inner_path(folder: Path, path: str, where: Path) -> Path:
    """Return a path that a file of a model folder names, which must lie in that folder.

    Args:
        folder: of the model.
        path: as the file names it, relative to the folder.
        where: the file that names it, for the error message.

    Raises:
        ModelError: an absolute path, or one that leaves the folder, be it by a link; a file of the
            hub's cache may be a link to another place of that cache.
    """
    up = path.startswith("/") or ".." in PurePosixPath(path).parts
    if up or set(path) & set("\\:\0") or not _leads_inside(real_path(folder), folder / path):
        raise ModelError(f"{where} names the path {path!r}; only paths inside its folder are read")
    return folder / path


def _leads_inside(folder: Path, path: Path) -> bool:
    """Tell whether a path, its links followed, is in a folder or in the hub's cache around it."""
    end = real_path(path)
    cached = folder.parent.name == "snapshots" and end.parent == folder.parent.parent / "blobs"
    return cached or end.is_relative_to(folder)


def write_json(path: Path, value: Any, indent: int | None = None, *, shared: bool = False) -> None:
    """Write a value as a JSON file that appears whole or not at all."""
    text = json_text(value, indent=indent)
    write_text(path, text + "\n", shared=shared)


def append_json(path: Path, value: Mapping[str, Any]) -> None:
    """Add an object to a log, on a line of its own even after a line that a kill cut off.

    Raises:
        JobError: the disk is full, or the file cannot be written.
    """
    line = json_text(value).encode("utf-8") + b"\n"
    with (
        disk_errors(path, "The lines before are kept; make room and run the same command again"),
        path.open("ab+") as file,
    ):
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a log, without lines that a kill cut off."""
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line)
            except (UnicodeDecodeError, json.JSONDecodeError):
                continue
            if isinstance(value, dict):
                yield value
