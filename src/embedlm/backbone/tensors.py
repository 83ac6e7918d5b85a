"""The one reader of files of tensors: safetensors, split or whole, and torch's pickles."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from embedlm.errors import ModelError
from embedlm.jobs.json_files import inner_path, read_object

__all__ = ["check_indexes", "read_index", "read_tensors"]

_UNREADABLE = (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.PickleError)


def read_tensors(source: str | Path, *names: str, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of the first of some files that a folder or hub id has.

    Args:
        source: folder or hub id.
        names: of the files, the best first: *.safetensors (or its parts, by their index), or a
            pickle of torch's, of which nothing but tensors is taken.
        prefix: only tensors whose names begin so are returned, without that beginning.

    Returns:
        On the CPU, by name; empty where the source has none of the files.

    Raises:
        ModelError: a file that cannot be read.
    """
    for name in names:
        paths = _parts(str(source), name, prefix)
        if not paths:
            continue
        tensors: dict[str, Tensor] = {}
        for path in paths:
            try:
                tensors |= _read(path, prefix)
            except _UNREADABLE as error:
                reason = " ".join(str(error).split())[:200]
                raise ModelError(
                    f"the weights in {path.name} of {str(source)!r} cannot be read (corrupt?): "
                    f"{reason}"
                ) from error
        return tensors
    return {}


def _parts(source: str, name: str, prefix: str) -> list[Path]:
    """Return the files that hold what is called `name`; none where the source has none."""
    silent: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    index = cached_file(source, f"{name}.index.json", **silent)
    if index is not None:
        files = read_index(Path(index))
        parts = sorted({file for key, file in files.items() if key.startswith(prefix)})
        try:
            return [Path(str(cached_file(source, part))) for part in parts]
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{index} names a file that cannot be read: {reason}") from error
    whole = cached_file(source, name, **silent)
    return [] if whole is None else [Path(whole)]


def read_index(file: Path) -> dict[str, str]:
    """Return which file beside an index holds each tensor.

    Raises:
        ModelError: it holds something else, or names a file outside its folder.
    """
    weight_map = read_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(part, str) for part in weight_map.values()
    ):
        raise ModelError(f"{file} has no weight_map from each tensor's name to its file")
    for part in sorted(set(weight_map.values())):
        inner_path(file.parent, part, file)
    return weight_map


def check_indexes(source: str) -> None:
    """Refuse a folder one of whose indexes names a file outside it.

    Raises:
        ModelError: see `read_index`.
    """
    for file in sorted(Path(source).glob("*.index.json")) if Path(source).is_dir() else ():
        read_index(file)


def _read(path: Path, prefix: str) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(str(path), "pt") as file:
            chosen = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            return {key.removeprefix(prefix): file.get_tensor(key) for key in chosen}
    every: Any = torch.load(path, map_location="cpu", weights_only=True)
    named = isinstance(every, Mapping) and all(isinstance(key, str) for key in every)
    if not named or not all(isinstance(value, Tensor) for value in every.values()):
        raise ValueError("it holds something else than tensors by name")
    return {k.removeprefix(prefix): v for k, v in every.items() if k.startswith(prefix)}
