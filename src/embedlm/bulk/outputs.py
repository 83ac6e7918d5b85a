"""Refuses, before a job begins, an output that cannot be written or cannot hold the vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from embedlm.bulk.recognise import check_ours
from embedlm.bulk.writers import OUTPUT_COLUMNS, WRITERS
from embedlm.data import Source
from embedlm.errors import InputError, closest, require
from embedlm.jobs.names import check_name, real_path

__all__ = ["check_output", "check_paths"]


def check_output(out: Path, keep: Iterable[str], arrays: set[str]) -> None:
    """Refuse a form of output that cannot hold these arrays of a block, or these fields."""
    form = out.suffix.lower()
    if str(out) == "-":
        raise InputError(
            "the output cannot be standard output (-), because a stopped job could not go on; "
            f"give a file that ends in one of {', '.join(WRITERS)}"
        )
    if form not in WRITERS:
        raise InputError(
            f"the output {str(out)!r} must end in one of {', '.join(WRITERS)}."
            + closest(form, list(WRITERS))
        )
    if form == ".npy" and arrays - {"columns", "rejects"} != {"dense"}:
        raise InputError(
            "a .npy file holds dense vectors alone; write sparse and multi-vector heads to .npz, "
            ".jsonl or .parquet, or ask for the dense head only"
        )
    if keep and form in (".npy", ".npz"):
        raise InputError(f"a {form} file cannot keep fields; write .jsonl or .parquet")
    taken = [name for name in keep if name in OUTPUT_COLUMNS]
    if taken:
        raise InputError(f"the field {taken[0]!r} cannot be kept: an output column has that name")
    if form == ".parquet":
        require("pyarrow.parquet", "parquet")
    check_ours(out)


def check_paths(outputs: Mapping[str, Path | None], inputs: Mapping[str, Source | None]) -> None:
    """Refuse outputs that are folders, have no folder, or are an input or another output.

    Args:
        outputs: the outputs, by their names in error messages.
        inputs: the inputs, by their names in error messages.
    """
    files = {what: source.path for what, source in inputs.items() if source and not source.stdin}
    for what, path in outputs.items():
        if path is None:
            continue
        check_name(path, what)
        if path.is_dir():
            raise InputError(f"the {what} {str(path)!r} is a folder; give a file name")
        if not path.parent.is_dir():
            raise InputError(
                f"the {what}'s folder {str(path.parent)!r} does not exist; create it first"
            )
        if not os.access(path.parent, os.W_OK):
            raise InputError(
                f"the {what} cannot be written, because nothing can be created in the folder "
                f"{str(path.parent)!r}; give another folder"
            )
        for other, file in files.items():
            if _same(path, file):
                raise InputError(f"the {what} is the {other} itself; give another name")
        files[what] = path


def _same(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return first.samefile(second)
    return real_path(first) == real_path(second)
