"""Records from one form into another, record by record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from embedlm.data.collection_writers import FOLDER_FORMS, write_collection
from embedlm.data.collections import COLLECTIONS, TRAIN, read_collection
from embedlm.data.source import Source
from embedlm.data.training_record import TrainingRecord, training_records
from embedlm.data.writers import RECORD_FORMS, check_form, record_lines
from embedlm.errors import InputError, RecordError
from embedlm.jobs import disk_errors, write_file
from embedlm.jobs.json_files import json_text
from embedlm.jobs.names import check_apart, check_name, check_parent

__all__ = ["convert", "read_any", "write_rows"]

_WITH_SPLITS = ("beir", "mteb")
_KEPT = "Nothing was written; make room and run the same command again"


def read_any(
    source: str | Path,
    form: str,
    *,
    corpus: str | Path | None = None,
    split: str | None = None,
    left_out: Counter[str] | None = None,
    unusable: Counter[str] | None = None,
) -> Iterator[TrainingRecord]:
    """Yield the records of a file of any layout ("records"), or of a collection; see `convert`.

    Raises:
        InputError: an unknown form or a missing file.
        RecordError: a bad record, with file and line.
    """
    check_form(form, ["records", *COLLECTIONS])
    if form != "records":
        options = {"left_out": left_out, "unanswered": unusable}
        yield from read_collection(source, form, corpus=corpus, split=split, **options)
        return
    if corpus is not None:
        raise InputError("records hold their texts; leave corpus out")
    if left_out is not None:
        raise InputError(
            "records hold their texts, and none can be missing; leave left_out (--skip-missing) out"
        )
    for record in training_records(Source(source)):
        if not isinstance(record, TrainingRecord):
            raise RecordError(record.error)
        yield record


def convert(
    source: str | Path,
    output: str | Path,
    *,
    from_form: str = "records",
    to_form: str = "records",
    corpus: str | Path | None = None,
    split: str | None = None,
    left_out: Counter[str] | None = None,
    unusable: Counter[str] | None = None,
) -> int:
    """Write records in another form; the output appears whole or not at all.

    Args:
        source: a file, or a folder of its form.
        output: a .jsonl file, or a new folder, as the form has it.
        from_form: "records" for any layout that is one file; or a name of `COLLECTIONS`.
        to_form: a name of `RECORD_FORMS` or of `FOLDER_FORMS`.
        corpus: tevatron2: the file with the passages.
        split: of beir and mteb, which is read or written; None: train.
        left_out: counts the queries and passages that a collection names and does not hold, which
            are left out; None: the first of them is an error.
        unusable: counts what is left out in any case: queries that no passage answers, and
            records that the other form cannot hold.

    Returns:
        The number of records.

    Raises:
        InputError: an unknown form, a missing file, an output that cannot be, or no record.
        RecordError: a bad record, with file and line.
        JobError: the disk is full.
    """
    check_form(to_form, [*RECORD_FORMS, *FOLDER_FORMS])
    check_name(output, "output")
    check_apart(output, [source, corpus])
    _check_split(split, from_form, to_form)
    if Path(output).is_file() and Path(output).stat().st_size:
        raise InputError(f"the output {str(output)!r} is there already; give another name")
    unusable = Counter() if unusable is None else unusable
    told = {"left_out": left_out, "unusable": unusable}
    found = read_any(source, from_form, corpus=corpus, split=split, **told)
    records = _some(found, source, unusable)
    if to_form in FOLDER_FORMS:
        return write_collection(records, output, to_form, split or TRAIN)
    return _write(_filled(records, to_form, unusable), output)


def _check_split(split: str | None, from_form: str, to_form: str) -> None:
    """Refuse a split that no form has, and one that is no file's name."""
    if split is None:
        return
    if {from_form, to_form}.isdisjoint(_WITH_SPLITS):
        raise InputError(
            f"a split ({split!r}) was named, and neither {from_form} nor {to_form} has any; leave "
            f"split out: it is for {' and '.join(_WITH_SPLITS)}"
        )
    if not re.fullmatch(r"[\w-][\w.-]*", split):
        raise InputError(f"the split {split!r} is no file's name; give one such as train or test")


def write_rows(rows: Iterable[dict[str, Any]], output: str | Path) -> int:
    """Write objects as a .jsonl file, and return how many; see `convert` for errors."""
    return _write(([json_text(row).encode("utf-8") + b"\n"] for row in rows), output)


def _write(groups: Iterable[list[bytes]], output: str | Path) -> int:
    check_name(output, "output")
    out, count = Path(output), 0
    if out.suffix != ".jsonl" or out.is_dir():
        raise InputError(f"the output {str(out)!r} is no .jsonl file; give a name that ends in it")
    check_parent(out)

    def write(handle: BinaryIO) -> None:
        nonlocal count
        for lines in groups:
            handle.writelines(lines)
            count += 1

    with disk_errors(out, _KEPT):
        write_file(out, write)
    return count


def _filled(
    records: Iterable[TrainingRecord], form: str, unusable: Counter[str]
) -> Iterator[list[bytes]]:
    """Yield the lines of each record that the form can hold; refuse records of which none is."""
    some = False
    for record in records:
        if lines := list(record_lines(record, form)):
            some = True
            yield lines
        else:
            unusable[f"records without negatives, of which {form} makes no triplet"] += 1
    if not some:
        raise InputError(
            f"no record has negatives, and {form} holds triplets; mine some (embedlm mine), or "
            "name another form: records, flagembedding, tevatron and e5 take pairs"
        )


def _some(
    records: Iterable[TrainingRecord], source: str | Path, unusable: Counter[str]
) -> Iterator[TrainingRecord]:
    """Yield the records; refuse an input without any."""
    none = True
    for record in records:
        none = False
        yield record
    if none:
        raise InputError(
            f"the input {str(source)!r} holds no record"
            + "".join(f", and {count:,} {what}" for what, count in unusable.items())
            + "; give records with a query and positives"
        )
