"""A record with all that is known of it: documents with ids, ranks and scores, and provenance.

As JSON:

    {"query": ..., "instruction": ..., "positives": [...], "positive_ids": [...],
     "negatives": [...], "negative_ids": [...], "negative_ranks": [...],
     "scores": [of each positive, then of each negative], "provenance": {field: {...}},
     and the record's other fields as they were}

`read_records` reads this form too, so that it can be trained on as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedlm.data.layouts import folded
from embedlm.data.records import passage_id, read_group
from embedlm.data.rows import FileRow, shortened
from embedlm.data.source import Source
from embedlm.errors import RecordError
from embedlm.jobs.rejects import Reject

__all__ = ["Document", "TrainingRecord", "read_training_record", "training_records"]

_READ = (
    *("scores", "teacher_scores", "pos_scores", "neg_scores", "positive_ids", "negative_ids"),
    *("negative_ranks", "provenance", "instruction", "prompt"),
)


@dataclass(slots=True)
class Document:
    """A positive or a negative of a record."""

    text: str
    id: str | None = None
    score: float | None = None
    """A model's score of it for the query; None: no model has scored it."""
    rank: int | None = None
    """Its rank, from 1, in the list that it was mined from; None: it was not mined."""


@dataclass(slots=True)
class TrainingRecord:
    """A query with documents that answer it and documents that do not."""

    query: str
    positives: list[Document]
    negatives: list[Document] = field(default_factory=list)
    instruction: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the values of a field come from, by field."""
    others: dict[str, Any] = field(default_factory=dict)
    """The record's other fields, kept as they are."""

    @property
    def documents(self) -> list[Document]:
        """The positives and then the negatives, in the order of scores."""
        return [*self.positives, *self.negatives]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it; a field of which nothing is known is left out."""
        value: dict[str, Any] = {"query": self.query}
        if self.instruction is not None:
            value["instruction"] = self.instruction
        for name, documents in (("positive", self.positives), ("negative", self.negatives)):
            value[f"{name}s"] = [document.text for document in documents]
            if any(document.id is not None for document in documents):
                value[f"{name}_ids"] = [document.id for document in documents]
        if any(document.rank is not None for document in self.negatives):
            value["negative_ranks"] = [document.rank for document in self.negatives]
        scores = [document.score for document in self.documents]
        if None not in scores:
            value["scores"] = scores
        value |= self.others
        return value | ({"provenance": self.provenance} if self.provenance else {})


def read_training_record(record: Mapping[str, Any], where: str) -> TrainingRecord:
    """Return the record of a row's fields, named as in any of the layouts.

    Args:
        record: the fields.
        where: its place, as "file:line".

    Raises:
        RecordError: no query, no positive, or a value of another kind.
    """
    record = folded(record, where)
    group, names = read_group(record, where)
    sides: dict[str, list[Document]] = {}
    for side, texts in (("positive", group.positives), ("negative", group.negatives)):
        name = names[f"{side}s"]
        ids = _ids(record, side, name, len(texts), where)
        sides[side] = [Document(text, id) for text, id in zip(texts, ids, strict=True)]
    ranks = record.get("negative_ranks") or [None] * len(group.negatives)
    if not isinstance(ranks, list) or len(ranks) != len(group.negatives):
        raise RecordError(
            f"{where}: 'negative_ranks' does not hold one rank for each of "
            f"{len(group.negatives)} negatives; mend it or leave it out"
        )
    for document, rank in zip(sides["negative"], ranks, strict=True):
        document.rank = rank
    found = TrainingRecord(group.query, sides["positive"], sides["negative"])
    for document, score in zip(found.documents, group.scores, strict=False):
        document.score = score
    instruction = record.get("instruction")
    instruction = record.get("prompt") if instruction is None else instruction
    if instruction is not None and not isinstance(instruction, str):
        kind = type(instruction).__name__
        raise RecordError(f"{where}: the instruction is {kind}, not a text")
    found.instruction = instruction
    found.provenance = dict(_provenance(record, where))
    found.others = {
        key: value
        for key, value in record.items()
        if key not in _READ and key not in names.values()
    }
    return found


def _provenance(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    provenance = record.get("provenance") or {}
    if not isinstance(provenance, Mapping):
        kind = type(provenance).__name__
        raise RecordError(f"{where}: 'provenance' is {kind}; give an object or leave it out")
    return provenance


def _ids(
    record: Mapping[str, Any], side: str, name: str | None, count: int, where: str
) -> list[str | None]:
    """Return the id of each positive or negative; None where it has none."""
    ids = record.get(f"{side}_ids")
    if ids is None:
        values = record.get(name) if name is not None else None
        passages = values if isinstance(values, list) else [values]
        return [passage_id(passage) for passage in passages[:count]] if count else []
    if not isinstance(ids, list) or len(ids) != count:
        raise RecordError(
            f"{where}: '{side}_ids' does not hold one id for each of {count} {side}s; mend it or "
            "leave it out"
        )
    return [None if id is None else str(id) for id in ids]


def training_records(source: Source) -> Iterator[TrainingRecord | Reject]:
    """Yield the record of each row, or what is wrong with it, in the file's order."""
    for row in source.rows():
        try:
            if row.error is not None or not isinstance(row.value, dict):
                raise RecordError(f"{source.name}:{row.line}: {_wrong(row)}. Correct the record")
            yield read_training_record(row.value, f"{source.name}:{row.line}")
        except RecordError as error:
            yield Reject(source.name, row.line, str(error), shortened(row.raw or row.value))


def _wrong(row: FileRow) -> str:
    kind = "a bare text" if isinstance(row.value, str) else f"a JSON {type(row.value).__name__}"
    return row.error or f"{kind}, not an object with a query and positives"
