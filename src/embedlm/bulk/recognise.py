"""Tells whether a file is one that a job has written, and may therefore write anew."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from embedlm.bulk.writers import OUTPUT_COLUMNS
from embedlm.errors import InputError, require

__all__ = ["check_ours"]

_ARRAYS = {"dense", "data", "indices", "indptr", "shape", "format", "multi_vector", "offsets"}


def check_ours(path: Path) -> None:
    """Refuse an output that is there already and holds something else than vectors.

    Raises:
        InputError: the file would be overwritten, and no job has written it.
    """
    if not path.exists():
        return
    ours = False
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        ours = path.is_file() and _KNOWN[path.suffix.lower()](path)
    if not ours:
        raise InputError(
            f"the output {str(path)!r} is there already and holds something that embedlm encode "
            "has not written; give another name, or remove it first"
        )


def _is_npy(path: Path) -> bool:
    return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim == 2)


def _is_npz(path: Path) -> bool:
    with np.load(path, allow_pickle=False) as file:
        return bool(file.files) and set(file.files) <= _ARRAYS


def _is_jsonl(path: Path) -> bool:
    with path.open("rb") as handle:
        line = handle.readline()
    row = json.loads(line) if line else {"id": 0, "dense": []}
    return isinstance(row, dict) and "id" in row and not set(OUTPUT_COLUMNS).isdisjoint(row)


def _is_parquet(path: Path) -> bool:
    names = require("pyarrow.parquet", "parquet").read_schema(path).names
    return "id" in names and not set(OUTPUT_COLUMNS).isdisjoint(names)


_KNOWN: dict[str, Callable[[Path], bool]] = {
    ".npy": _is_npy,
    ".npz": _is_npz,
    ".jsonl": _is_jsonl,
    ".parquet": _is_parquet,
}
