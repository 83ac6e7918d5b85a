"""JSON lines, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedlm.errors import InputError, RecordError

__all__ = ["read_lines"]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of `path`, or of `path` + ".gz" where that is what there is.

    Raises:
        InputError: neither is there.
        RecordError: a line that is no JSON object, with file and line.
    """
    packed = path.with_name(path.name + ".gz")
    source = path if path.is_file() else packed
    if not source.is_file():
        raise InputError(f"{path} is not there (nor {packed.name}); check the data folder")
    with gzip.open(source, "rt") if source.suffix == ".gz" else source.open() as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise RecordError(f"{source}:{number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise RecordError(f"{source}:{number}: not a JSON object")
            yield record
