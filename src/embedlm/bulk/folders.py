"""Encodes the files of a folder into another folder, a file each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.bulk.files import Encoded, encode_file
from embedlm.bulk.writers import WRITERS
from embedlm.data.compression import COMPRESSIONS, split_compression
from embedlm.data.folders import visible_files
from embedlm.data.forms import FORMS, SUFFIXES, check_used, file_form
from embedlm.errors import InputError
from embedlm.jobs.interrupts import keeping
from embedlm.jobs.names import check_name, make_folder

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["encode_folder"]

log = logging.getLogger(__name__)

_NAMED = 10
"""Files that are left out and told by name."""


def encode_folder(
    model: Embedder, source: str | Path, target: str | Path, **options: Any
) -> list[Encoded]:
    """Encode each file of a folder, and below it, into a .parquet of its name in another folder.

    A file that an earlier run has finished is skipped unless the file, the model or an option has
    changed; an unfinished one is resumed. Files whose names differ only in their endings keep them:
    `a.txt` and `a.csv` become `a.txt.parquet` and `a.csv.parquet`. Files of other forms are left
    out with a warning; hidden ones, and the target where it lies in the source, without.

    Args:
        model: encodes.
        source: folder of files that `encode_file` reads.
        target: folder of the outputs, made if it is not there.
        **options: as for `encode_file`, but rejects.

    Raises:
        InputError: no file to encode, or a target that cannot be the outputs' folder.
    """
    if options.get("rejects") is not None:
        raise InputError(
            "rejects cannot be set aside for a whole folder; encode its files one at a time"
        )
    if options.get("input_format") is not None:
        raise InputError(
            "the format is told by each file's name where a folder is encoded; leave --format "
            "(input_format=) out, or encode the file by itself"
        )
    check_name(source, "input")
    check_name(target, "output")
    folder, out = Path(source), Path(target)
    _check_target(folder, out)
    files = _inputs(folder, out)
    fitting = _fitting(folder, files, options)
    names = _output_names([file.relative_to(folder) for file in files])
    make_folder(out, "output folder")
    reports: list[Encoded] = []
    with keeping(lambda: bool(reports)):
        for file, name, own in zip(files, names, fitting, strict=True):
            place = out / name.parent
            make_folder(place, "output folder")
            target, note = place / f"{name.name}.parquet", place / f".{name.name}.json"
            reports.append(encode_file(model, file, target, note=note, **own))
    return reports


def _fitting(folder: Path, files: Sequence[Path], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the options of each file: a folder's files need not all use each of them.

    Raises:
        InputError: an option that none of the files can use.
    """
    forms = [str(file_form(file)[0]) for file in files]
    text_field, quoting = options.get("text_field", "text"), options.get("quoting")
    check_used(str(folder), forms, text_field=text_field, quoting=quoting)
    fitting = []
    for form in (FORMS[name] for name in forms):
        unused = {"text_field"} if form.bare else set()
        unused |= {"quoting"} if form.quoting is None else set()
        fitting.append({name: value for name, value in options.items() if name not in unused})
    return fitting


def _check_target(folder: Path, out: Path) -> None:
    if split_compression(out)[0].suffix.lower() in {*WRITERS, *SUFFIXES} or out.is_file():
        raise InputError(
            f"the input {str(folder)!r} is a folder, so the output is one too, with a .parquet "
            f"file for each input; {str(out)!r} is the name of a file. Give a folder's name"
        )
    if out.is_dir() and out.samefile(folder):
        raise InputError(
            f"the output is the input folder {str(folder)!r} itself, whose next run would encode "
            "its own outputs; give another folder"
        )


def _inputs(folder: Path, out: Path) -> list[Path]:
    """Return the files of a folder and below it that can be read, but for those of the outputs."""
    outputs = out.resolve()
    within = outputs.is_relative_to(folder.resolve())
    files: list[Path] = []
    left_out: list[str] = []
    for path in visible_files(folder):
        if within and path.resolve().is_relative_to(outputs):
            continue
        if path.is_file() and file_form(path)[0] is not None:
            files.append(path)
        else:
            left_out.append(str(path.relative_to(folder)))
    if not files:
        raise InputError(
            f"the folder {str(folder)!r} holds no file that ends in one of {', '.join(SUFFIXES)}, "
            f"with or without {', '.join(COMPRESSIONS)}"
        )
    if left_out:
        log.warning(
            "skipped in %s, because they are files that cannot be read: %s%s",
            folder,
            ", ".join(left_out[:_NAMED]),
            f" and {more} more" if (more := len(left_out) - _NAMED) > 0 else "",
        )
    return files


def _output_names(files: Sequence[Path]) -> list[Path]:
    """Return a name for each file, without endings where that tells the files apart."""
    names = [file.with_name(split_compression(file)[0].stem) for file in files]
    while twice := {name for name, count in Counter(names).items() if count > 1}:
        names = [file if name in twice else name for file, name in zip(files, names, strict=True)]
    return names
