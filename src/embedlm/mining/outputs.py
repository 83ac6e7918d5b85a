"""Where a job over records writes, and what it returns."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.errors import InputError
from embedlm.jobs.names import check_apart, check_name, check_parent, real_path
from embedlm.jobs.rejects import check_rejects

__all__ = ["Mined", "check_paths", "opened", "read_rows_of"]


@dataclass(frozen=True, slots=True)
class Mined:
    """The report of a finished job."""

    report: dict[str, Any]
    """What `OUT.report.json` holds: see docs/mine.md."""
    records: list[dict[str, Any]] | None = None
    """The rows of the output, where no file was named for it."""


@contextmanager
def opened(output: str | Path | None, name: str) -> Iterator[Path]:
    """Yield the output's path; where none was given, one in a folder that is then removed.

    Raises:
        InputError: a name that is not a .jsonl file's, or a folder that is not there.
    """
    if output is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / name
        return
    check_name(output, "output")
    out = Path(output)
    if out.suffix != ".jsonl" or out.is_dir():
        raise InputError(f"the output {str(out)!r} is no .jsonl file; give a name that ends in it")
    check_parent(out)
    yield out


def check_paths(out: Path, rejects: str | Path | None, inputs: Sequence[Any]) -> Path | None:
    """Return the rejects file, after a check that nothing else would be overwritten.

    Raises:
        InputError: two of the files are one, the rejects file holds something else, or the output
            what no run has written.
    """
    aside = None if rejects is None else Path(rejects)
    if aside is not None:
        check_name(aside, "rejects file")
    check_rejects(aside or out.with_name(f"{out.name}.rejects.jsonl"))
    check_apart(out, inputs)
    if aside is not None:
        check_apart(aside, inputs, "rejects file")
        if real_path(aside) == real_path(out):
            raise InputError(f"{str(out)!r} is the output and the rejects file; give two names")
    ours = out.with_name(f"{out.name}.report.json").is_file()  # written before the output
    if out.is_file() and out.stat().st_size and not ours:
        raise InputError(
            f"the output {str(out)!r} is there already and holds something that no run has "
            "written, since it has no report beside it; give another name, or remove it first"
        )
    return aside


def read_rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the rows of a finished output."""
    with out.open(encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]
