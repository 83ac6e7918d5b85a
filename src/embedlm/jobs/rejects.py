"""Bad records, set aside as JSON lines instead of stopping a job."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from embedlm.errors import InputError, JobError
from embedlm.jobs.atomic import write_file

__all__ = ["Reject", "check_counts", "check_rejects", "write_rejects"]

_FIELDS = {"file", "line", "error", "record"}


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that a job could not use."""

    file: str
    line: int
    """The line on which it begins, from 1 (parquet: the row)."""
    error: str
    record: str = ""
    """The record as the file has it, shortened."""

    def to_json(self) -> str:
        """Return it as a line of a rejects file."""
        facts = {"file": self.file, "line": self.line, "error": self.error, "record": self.record}
        return json.dumps(facts, ensure_ascii=False)


def check_rejects(path: Path) -> None:
    """Refuse a rejects file that is there already and holds something else than rejects.

    Raises:
        InputError: the file would be overwritten, and no job has written it.
    """
    if not path.exists():
        return
    ours = path.is_file()  # reading from anything else could wait for ever
    if ours:
        with path.open("rb") as handle:
            ours = all(map(_is_reject, handle))
    if not ours:
        raise InputError(
            f"the rejects file {str(path)!r} is there already and holds something else than "
            "rejects, which would be overwritten; give another name"
        )


def _is_reject(line: bytes) -> bool:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and set(fields) == _FIELDS


def write_rejects(path: Path, lines: Iterable[bytes]) -> None:
    """Write a rejects file of finished lines; it appears whole or not at all."""
    write_file(path, lambda handle: handle.writelines(lines))


def check_counts(read: int, written: int, rejected: int) -> None:
    """Check that every record of the input is either in the output or among the rejects.

    Raises:
        JobError: the numbers do not add up.
    """
    if read != written + rejected:
        raise JobError(
            f"{read} records were read, but {written} are in the output and {rejected} among the "
            "rejects. Nothing was written. Run the job again with --restart (restart=True); if "
            "the numbers still differ, report it as a bug"
        )
