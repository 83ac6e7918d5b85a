"""JSON files of model folders, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embedlm.errors import ModelError

__all__ = ["optional_json", "read_json"]


def read_json(path: Path) -> Any:
    """Return a JSON file's content.

    Raises:
        ModelError: no such file, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error


def optional_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's mapping; an empty one where there is no such file."""
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
