"""The fields of the common layouts of training records, and those wider layouts folded into them.

sentence-transformers' mining also writes a column for each negative (negative_1, negative_2, ...),
and documents with a label each, 1 for an answer and 0 for none. Before version 5 it called
scores label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from embedlm.errors import RecordError

__all__ = ["FIRST", "NEGATIVE", "PASSAGE_IDS", "POSITIVE", "QUERY", "SCORE", "SECOND"]
__all__ += ["field_of", "folded"]

QUERY = ("query", "anchor", "question", "query_text", "q")
POSITIVE = (
    *("positive", "positives", "pos", "pos_doc", "positive_passages"),
    *("document", "passage", "answer", "d"),
)
NEGATIVE = ("negative", "negatives", "neg", "neg_doc", "hard_negatives", "negative_passages")
PASSAGE_IDS = ("id", "_id", "docid", "doc_id")
FIRST = ("sentence1", "s1", "text1", "a")
SECOND = ("sentence2", "s2", "text2", "b")
SCORE = ("score", "similarity", "label")
_LABELS = ("labels", "label")
_NO = ("0", "0.0", "False")
_NUMBERED = re.compile(r"(?:hard_)?neg(?:ative)?_?(\d+)")


def field_of(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """Return the first name of a field that is not null; failing it, the first that is there."""
    there = [name for name in names if name in record]
    return next((name for name in there if record[name] is not None), next(iter(there), None))


def folded(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return a group's record with its negatives in one field, and without labels.

    Args:
        record: its fields, named as in any of the layouts.
        where: its place, as "file:line".

    Raises:
        RecordError: the one document has the label 0.
    """
    return _without_labels(_without_numbers(record), where)


def _without_numbers(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record with the columns negative_1, negative_2, ... as a list."""
    numbers = {name: int(sign[1]) for name in record if (sign := _NUMBERED.fullmatch(name))}
    if not numbers:
        return record
    plain = field_of(record, NEGATIVE)
    held = record[plain] if plain is not None else None
    values = [*(held if isinstance(held, list) else [held])]
    values += [record[name] for name in sorted(numbers, key=numbers.__getitem__)]
    rest = {name: value for name, value in record.items() if name not in numbers}
    # A table has the column in every row, be it empty.
    return {**rest, plain or "negatives": [value for value in values if value not in (None, "")]}


def _without_labels(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return a record whose documents with the label 0 are negatives, and other labels scores."""
    label, positive = field_of(record, _LABELS), field_of(record, POSITIVE)
    if label is None or positive is None:
        return record
    labels, negative = record[label], field_of(record, NEGATIVE)
    rest = {name: value for name, value in record.items() if name != label}
    if negative is not None and record[negative]:
        return {"scores": labels, **rest} if _are_numbers(labels) else record
    if str(labels).strip() in _NO:  # a table's cells are texts
        raise RecordError(
            f"{where}: {label!r} is {labels}, so {positive!r} is no answer; give it as a negative "
            "in a record of the query's answer, or leave it out"
        )
    documents = record[positive]
    fitting = isinstance(documents, list) and _are_numbers(labels) and len(labels) == len(documents)
    if not fitting or not all(one in (0, 1) for one in labels):
        return record
    pairs = list(zip(documents, labels, strict=True))
    answers, others = ([one for one, held in pairs if held == wanted] for wanted in (1, 0))
    return {**rest, positive: answers, negative or "negatives": others}


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(one, int | float) for one in values)
