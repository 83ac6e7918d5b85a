"""JSON in files: whole files, and logs with one object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from embedlm.errors import EmbedLMError, ModelError
from embedlm.jobs.atomic import disk_errors, write_text

__all__ = [
    "append_json",
    "inner_path",
    "json_text",
    "optional_json",
    "read_json",
    "read_log",
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


def read_json(path: Path, error: type[EmbedLMError] = ModelError) -> Any:
    """Return a JSON file's content.

    Args:
        path: the file.
        error: raised where the file cannot be read or is not JSON.

    Raises:
        ModelError: or `error`; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"{path} cannot be read as JSON: {reason}") from reason
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} cannot be read as JSON: it is not valid JSON ({reason})") from reason


def optional_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's mapping; an empty one where there is no such file."""
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def inner_path(folder: Path, path: str, where: Path) -> Path:
    """Return a path that a file of a model folder names, which must lie in that folder.

    Args:
        folder: of the model.
        path: as the file names it, relative to the folder.
        where: the file that names it, for the error message.

    Raises:
        ModelError: an absolute path, or one that leaves the folder.
    """
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or set(path) & set("\\:\0"):
        raise ModelError(f"{where} names the path {path!r}; only paths inside its folder are read")
    return folder / path


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
