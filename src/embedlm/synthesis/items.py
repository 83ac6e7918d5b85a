"""What flows through a pipeline: items with fields, first made of the input.

An item's `id` says where it comes from; with the seed it decides everything that is drawn.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from embedlm.data import Source, TrainingRecord, read_rows, training_records
from embedlm.data.rows import unwritable
from embedlm.errors import InputError, RecordError
from embedlm.jobs import Reject
from embedlm.mining.corpus import Rows, prepare_corpus
from embedlm.mining.lines import Lines, write_lines
from embedlm.schema.arguments import short
from embedlm.schema.pipeline import Pipeline, Several

__all__ = ["Item", "drawn", "fill", "prepare_items", "seed_of"]

Item = dict[str, Any]
_QUERIES = ("query", "text", "question")


def seed_of(*parts: Any) -> int:
    """Return a seed of 31 bits that is decided by values, the same on every machine."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=4).digest()) >> 1


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Return a template with its slots filled; a list stands as lines."""

    def value(slot: re.Match[str]) -> str:
        found = fields[slot[1]]
        return "\n".join(map(str, found)) if isinstance(found, list | tuple) else str(found)

    names = "|".join(sorted(map(re.escape, fields), key=len, reverse=True))
    return re.sub(rf"\{{({names})\}}", value, template) if names else template


def drawn(options: Mapping[str, Any], *parts: Any) -> dict[str, Any]:
    """Return a value for each field that is drawn; `parts` decide which."""
    values: dict[str, Any] = {}
    for name, choices in options.items():
        rng = random.Random(seed_of(name, *parts))
        if isinstance(choices, Several):
            values[name] = rng.sample(choices.options, min(choices.take, len(choices.options)))
        else:
            values[name] = rng.choice(choices)
    return values


def prepare_items(
    pipeline: Pipeline,
    rows: Rows | None,
    folder: Path,
    *,
    count: int | None,
    seed: int,
    rejects: list[Reject] | None,
    empty: list[Reject],
) -> Lines:
    """Write the first items into a folder.

    Args:
        pipeline: says what they are made of.
        rows: the input; None where the pipeline reads none.
        folder: where they are kept.
        count: so many of them, drawn by the seed; None: all, or one where nothing is read.
        seed: of all that is drawn.
        rejects: takes records that cannot be used; None: the first one is an error.
        empty: takes passages without text.

    Raises:
        InputError: no input where one is read, or one where none is.
        RecordError: a record that cannot be used.
    """
    if (rows is None) != (pipeline.input == "none"):
        read = {"none": "reads no input; leave it out"}.get(
            pipeline.input, f"reads {pipeline.input}; give a file of them"
        )
        raise InputError(f"the pipeline {pipeline.name!r} {read}")
    if rows is None:
        found: Iterator[Item] = ({"id": f"{i}", "number": i} for i in range(1, (count or 1) + 1))
    elif pipeline.input == "passages":
        found = _passages(rows, folder, rejects, empty)
    else:
        found = _READ[pipeline.input](rows, folder, rejects)
    every = write_lines(folder / "input.jsonl", found)
    if not len(every):
        raise InputError(f"the input holds no {pipeline.input.rstrip('s')} that can be used")
    chosen: Iterable[Item] = every
    if rows is not None and count is not None and count < len(every):
        places = sorted(random.Random(seed).sample(range(len(every)), count))
        chosen = (every[i] for i in places)
    return write_lines(
        folder / "items.jsonl",
        ({**item, **drawn(pipeline.draw, seed, item["id"])} for item in chosen),
    )


def _passages(
    rows: Rows, folder: Path, rejects: list[Reject] | None, empty: list[Reject]
) -> Iterator[Item]:
    for line in prepare_corpus(rows, folder, rejects, empty=empty).lines:
        yield {"id": line["id"], "passage": line["text"], "passage_id": line["id"]}


def _records(rows: Rows, folder: Path, rejects: list[Reject] | None) -> Iterator[Item]:
    for number, record in enumerate(training_records(Source(_in_a_file(rows, folder))), 1):
        if isinstance(record, TrainingRecord):
            negative = record.negatives[0].text if record.negatives else ""
            yield {
                "id": f"r{number}",
                "query": record.query,
                "positive": record.positives[0].text,
                "negative": negative,
                "instruction": record.instruction or "",
            }
        elif rejects is None:
            raise RecordError(record.error)
        else:
            rejects.append(record)


def _fields(rows: Rows, folder: Path, names: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
    """Yield the number of each row and the first of some fields that it has."""
    for number, (where, row) in enumerate(read_rows(_in_a_file(rows, folder)), 1):
        name = next((name for name in names if name in row), None)
        text = row.get(name) if name is not None else None
        if not isinstance(text, str) or not text.strip():
            raise RecordError(f"{where}: has no text in {' or '.join(names)}; correct the record")
        yield number, (text.strip(), row, where)


def _in_a_file(rows: Rows, folder: Path) -> str | Path:
    """Return the file of some rows, into which those in memory are written."""
    if isinstance(rows, str | Path):
        return rows

    def values() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows, 1):
            value = {"text": row} if isinstance(row, str) else row
            reason = unwritable(value) if isinstance(value, Mapping) else "is no object"
            if reason is not None:
                raise RecordError(f"rows:{number}: {short(row)} {reason}; correct the record")
            yield dict(value)

    return write_lines(folder / "given.jsonl", values()).path


def _queries(rows: Rows, folder: Path, rejects: list[Reject] | None) -> Iterator[Item]:
    for number, (text, row, _) in _fields(rows, folder, _QUERIES):
        yield {"id": str(row.get("id", row.get("_id", f"q{number}"))), "query": text}


def _labels(rows: Rows, folder: Path, rejects: list[Reject] | None) -> Iterator[Item]:
    for number, (text, row, where) in _fields(rows, folder, ("text",)):
        if row.get("label") in (None, ""):
            raise RecordError(f"{where}: has no label; give text and label")
        yield {"id": f"t{number}", "text": text, "label": str(row["label"])}


_READ = {"records": _records, "queries": _queries, "labels": _labels}
