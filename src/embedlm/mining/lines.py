"""A file of JSON lines that is read at any place: what does not fit in memory."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.data.keys import text_key
from embedlm.jobs import disk_errors
from embedlm.jobs.json_files import json_text

__all__ = ["Lines", "text_key", "write_lines"]

_KEPT = "Vectors that are finished are kept; make room and run the same command again"


class Lines(Sequence[dict[str, Any]]):
    """The objects of a file that `write_lines` wrote; only those asked for are read."""

    def __init__(self, path: Path, starts: npt.NDArray[np.int64], digest: str) -> None:
        self.path = path
        self.digest = digest
        """A hash of all lines."""
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: Any) -> Any:
        place = int(index)
        with self.path.open("rb") as handle:
            handle.seek(int(self._starts[place]))
            return json.loads(handle.read(int(self._starts[place + 1] - self._starts[place])))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as handle:
            for line in handle:
                yield json.loads(line)


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> Lines:
    """Write objects, a line each, and return them.

    Raises:
        JobError: the disk is full.
    """
    starts, seen = array("q", [0]), hashlib.sha256()
    with disk_errors(path, _KEPT), path.open("wb") as handle:
        for value in values:
            line = json_text(value).encode("utf-8") + b"\n"
            seen.update(line)
            handle.write(line)
            starts.append(starts[-1] + len(line))
    return Lines(path, np.frombuffer(starts, dtype=np.int64), seen.hexdigest()[:32])
