"""Manifests: the input, model and options of a job, and how two manifests differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedlm.errors import JobError, clipped
from embedlm.jobs.json_files import read_json

__all__ = ["change_of", "difference", "facts_digest", "json_values"]

_SHOWN = 3
"""Differences that a message names."""


def json_values(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest as JSON would read it back; what is not a type of JSON is a string."""
    values: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return values


def facts_digest(facts: Mapping[str, Any]) -> str:
    """Return a hash of a manifest's values, 16 characters that can stand in a file's name."""
    text = json.dumps(json_values(facts), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def change_of(file: Path, manifest: Mapping[str, Any]) -> str:
    """Return how a job differs from the one whose manifest is in a file; "" if it does not."""
    try:
        before = read_json(file, JobError)
    except JobError as error:
        return str(error)
    return difference(before, manifest)


def difference(before: Any, now: Mapping[str, Any]) -> str:
    """Return in words how two manifests differ; "" if they do not."""
    old, new = _flat(before), _flat(json_values(now))
    changes = [
        f"{key} was {_brief(old.get(key))}, is {_brief(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return "; ".join(changes[:_SHOWN]) + more


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _brief(value: Any) -> str:
    return clipped(json.dumps(value, ensure_ascii=False))
