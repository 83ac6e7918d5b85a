"""Whether a generation of an index is as it was written: its files, and how many passages it holds.

Qdrant Edge opens a folder whose files are emptied, cut off or gone without an error, and then finds
other passages. So the writer notes all files that nobody changes afterwards, and each opening
compares them. An index that was made before files were noted is told by its passages alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.errors import InputError
from embedlm.jobs.json_files import read_json, write_json

if TYPE_CHECKING:
    from embedlm.search.catalogue import Catalogue
    from embedlm.search.edge import EdgeStore
    from embedlm.search.exact import ExactStore

__all__ = ["check_files", "check_passages", "note_files"]

_NOTED = "files.json"
_SMALL = 1 << 20
"""Bytes; files below that are compared by their content, others by their size."""
_WRITTEN_BY_EDGE = {
    "edge_config.json",
    "flags_a.dat",
    "flags_b.dat",
    "segment.json",
    "status.dat",
    "tracker.dat",
}
"""Files that Edge writes also where an index is only opened and searched: they must be there."""
_LOG, _JOURNAL = "wal", "tracker_journal.dat"
"""Edge's log of changes, a folder, and what it has not yet put in its place."""


def note_files(generation: Path) -> None:
    """Write down the files of a finished generation: their sizes, and digests of the small ones."""
    noted: dict[str, list[Any]] = {}
    for file in sorted(generation.rglob("*")):
        comes_and_goes = file.parent.name == _LOG or file.name == _JOURNAL
        if file.is_file() and file.name != _NOTED and not comes_and_goes:
            noted[file.relative_to(generation).as_posix()] = _state(file)
    write_json(generation / _NOTED, noted)


def check_files(generation: Path) -> None:
    """Refuse a generation whose files are not those that were written.

    Raises:
        InputError: with the file.
    """
    noted = generation / _NOTED
    if not noted.is_file():
        return
    held = read_json(noted, InputError, "make the index again")
    if not isinstance(held, dict):
        raise InputError(f"{noted} is damaged; make the index again")
    for name, state in held.items():
        file = generation / name
        if not file.is_file():
            raise InputError(f"the index is damaged: {file} is missing; make the index again")
        if _state(file) != state:
            raise InputError(
                f"the index is damaged: {file} is not as it was written; make the index again"
            )


def check_passages(store: EdgeStore | ExactStore, catalogue: Catalogue, index: Path) -> None:
    """Close and refuse a store that does not hold as many passages as the catalogue.

    Raises:
        InputError: with both numbers.
    """
    held, wanted = len(store), len(catalogue)
    if held != wanted:
        store.close()
        raise InputError(
            f"the store holds {held:,} passages and the catalogue {wanted:,}: the index "
            f"{index} is damaged; make it again"
        )


def _state(file: Path) -> list[Any]:
    if file.name in _WRITTEN_BY_EDGE:
        return []
    size = file.stat().st_size
    if size >= _SMALL:
        return [size]
    return [size, hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()]
