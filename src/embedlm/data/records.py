"""What a model is trained on: groups of a query with its documents, scored pairs, or bare texts.

The field names of the common layouts are read: sentence-transformers (anchor, positive, negative or
negative_1, negative_2, ..., labels; sentence1, sentence2, score or label), FlagEmbedding (query,
pos, neg, pos_scores, neg_scores), BEIR-like (q, d), natural language inference (premise,
hypothesis, label) and labelled texts (text, label).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from embedlm.data.forms import FORMS
from embedlm.data.layouts import (
    FIRST,
    NEGATIVE,
    PASSAGE_IDS,
    POSITIVE,
    QUERY,
    SCORE,
    SECOND,
    field_of,
    folded,
)
from embedlm.data.readers import read_rows
from embedlm.data.source import Source
from embedlm.errors import InputError, RecordError
from embedlm.jobs.names import check_name

__all__ = [
    "Group",
    "Pair",
    "RecordKind",
    "Records",
    "passage_id",
    "read_group",
    "read_records",
    "titled",
]

RecordKind = Literal["groups", "pairs", "texts"]


@dataclass(frozen=True, slots=True)
class Group:
    """A query with documents that answer it and documents that do not."""

    query: str
    positives: tuple[str, ...]
    """Documents that answer the query."""
    negatives: tuple[str, ...] = ()
    """Documents that do not."""
    scores: tuple[float, ...] = ()
    """A teacher's score of each positive and then of each negative; empty: none."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts and their similarity."""

    first: str
    second: str
    score: float
    """How similar both are, on the scale of the file."""


Example = Group | Pair | str


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one source, all of one kind."""

    name: str
    kind: RecordKind
    items: tuple[Any, ...]
    has_negatives: bool = False
    has_scores: bool = False

    def texts(self) -> Iterator[str]:
        """Yield all texts of the records, in their order."""
        for item in self.items:
            if isinstance(item, Group):
                yield from (item.query, *item.positives, *item.negatives)
            elif isinstance(item, Pair):
                yield from (item.first, item.second)
            else:
                yield str(item)


def read_records(source: str | Path, limit: int | None = None) -> Records:
    """Return the records of a file, of any form that `data.Source` reads.

    Args:
        source: a path, with or without its .gz, .xz or .zst.
        limit: read only the first ones.

    Raises:
        InputError: nothing is there, it is empty, or its records are of several kinds.
        RecordError: a record that cannot be used, with file and line.
    """
    check_name(source, "input")
    path = Path(source)
    items: list[Example] = list(islice(_examples(path), limit))
    if not items:
        raise InputError(f"{path} holds no record; give a file with at least two")
    if len({type(item) for item in items}) > 1:
        raise InputError(f"{path} mixes records of several kinds; give a file for each")
    groups = [item for item in items if isinstance(item, Group)]
    kind: RecordKind = "groups" if groups else "pairs" if isinstance(items[0], Pair) else "texts"
    negatives = bool(groups) and all(group.negatives for group in groups)
    scores = bool(groups) and all(group.scores for group in groups)
    return Records(path.name.split(".")[0], kind, tuple(items), negatives, scores)


def _examples(path: Path) -> Iterator[Example]:
    source = Source(path)
    bare = FORMS[source.form].bare
    labelled: dict[str, list[str]] = {}
    entailed: dict[str, tuple[list[str], list[str]]] = {}
    for where, record in read_rows(source):
        if bare:
            if record["text"].strip():
                yield record["text"].strip()
        elif "premise" in record and "hypothesis" in record:
            _inferred(record, entailed, where)
        elif "text" in record and "label" in record:
            text = _text(record["text"], where, "text")
            if record["label"] is None:
                raise RecordError(f"{where}: 'label' is null; give the text's label")
            labelled.setdefault(str(record["label"]), []).append(text)
        else:
            yield _item(record, where)
    yield from _of_labels(labelled)
    for premise, (positives, negatives) in entailed.items():
        if positives:
            yield Group(premise, tuple(positives), tuple(negatives))


def _inferred(
    record: Mapping[str, Any], by_premise: dict[str, tuple[list[str], list[str]]], where: str
) -> None:
    """Take an entailed hypothesis as a positive, a contradicted one as a hard negative."""
    premise = _text(record["premise"], where, "premise")
    label = str(record.get("label"))
    positives, negatives = by_premise.setdefault(premise, ([], []))
    if label in ("entailment", "0", "contradiction", "2"):
        chosen = positives if label in ("entailment", "0") else negatives
        chosen.append(_text(record["hypothesis"], where, "hypothesis"))


def _of_labels(labelled: Mapping[str, list[str]]) -> Iterator[Group]:
    """Yield texts of one label as each other's positives, one of the next label as a negative."""
    labels = [label for label, texts in labelled.items() if len(texts) > 1]
    for number, label in enumerate(labels):
        texts = labelled[label]
        others = labelled[labels[(number + 1) % len(labels)]] if len(labels) > 1 else []
        for index, text in enumerate(texts):
            positive = texts[(index + 1) % len(texts)]
            if positive != text:
                negative = (others[index % len(others)],) if others else ()
                yield Group(text, (positive,), negative)


def _item(record: Mapping[str, Any], where: str) -> Example:
    query, first = field_of(record, QUERY), field_of(record, FIRST)
    if query is not None:
        return _group(folded(record, where), query, where)
    if first is not None:
        second, score = field_of(record, SECOND), field_of(record, SCORE)
        if second is None:
            raise RecordError(f"{where}: has {first!r} and no {' or '.join(SECOND)}")
        a, b = _text(record[first], where, first), _text(record[second], where, second)
        if score is None:
            return Group(a, (b,))
        return Pair(a, b, _number(record[score], where, score))
    if "text" in record:
        return _text(record["text"], where, "text")
    has = f"has the fields {', '.join(map(repr, record))}" if record else "is empty"
    raise RecordError(
        f"{where}: {has}; expected are query and positive (with negative), sentence1, sentence2 "
        "and score, or text"
    )


def read_group(record: Mapping[str, Any], where: str) -> tuple[Group, dict[str, str | None]]:
    """Return the group of a record, and which of its fields hold what.

    Args:
        record: its fields, named as in any of the layouts and `folded`.
        where: its place, as "file:line".

    Returns:
        The group; the names of the fields with the query, the positives and the negatives.

    Raises:
        RecordError: no query, no positive, or a value of another kind.
    """
    query = field_of(record, QUERY)
    if query is None:
        has = f"has the fields {', '.join(map(repr, record))}" if record else "is empty"
        raise RecordError(f"{where}: {has}; expected are query and positives")
    fields = {
        "query": query,
        "positives": field_of(record, POSITIVE),
        "negatives": field_of(record, NEGATIVE),
    }
    return _group(record, query, where), fields


def _group(record: Mapping[str, Any], query: str, where: str) -> Group:
    positive, negative = field_of(record, POSITIVE), field_of(record, NEGATIVE)
    if positive is None:
        raise RecordError(f"{where}: has no positive; give one of {', '.join(POSITIVE)}")
    text = _text(record[query], where, query)
    positives = _several(record[positive], where, positive)
    # A table has the column in every row, be it empty.
    empty = negative is None or record[negative] in (None, "")
    negatives = () if negative is None or empty else _several(record[negative], where, negative)
    if not positives:
        raise RecordError(f"{where}: {positive!r} is empty; give at least one positive")
    both = set(positives) & set(negatives)
    if both:
        raise RecordError(f"{where}: {min(both)[:60]!r} is a positive and a negative")
    return Group(text, positives, negatives, _scores(record, len(positives), negatives, where))


def _scores(
    record: Mapping[str, Any], positives: int, negatives: tuple[str, ...], where: str
) -> tuple[float, ...]:
    """Return a teacher's scores, for positives and then for negatives."""
    scores = _listed(record, where, "scores") or _listed(record, where, "teacher_scores")
    scores = scores or [
        *_listed(record, where, "pos_scores"),
        *_listed(record, where, "neg_scores"),
    ]
    if scores and len(scores) != positives + len(negatives):
        raise RecordError(
            f"{where}: {len(scores)} scores for {positives} positives and {len(negatives)} "
            "negatives; give one for each"
        )
    return tuple(_number(value, where, "scores") for value in scores)


def _listed(record: Mapping[str, Any], where: str, name: str) -> list[Any]:
    """Return the values of a field; a field that is null holds none."""
    value = record.get(name)
    if isinstance(value, str | Mapping) or not isinstance(value, int | float | Iterable | None):
        raise RecordError(f"{where}: {name!r} is {type(value).__name__}; give a list of numbers")
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) else [value]


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"{where}: {name!r} is {value!r}, not a text")
    return value.strip()


def _several(value: Any, where: str, name: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str | dict) else value
    if not isinstance(values, list):
        raise RecordError(f"{where}: {name!r} is {type(value).__name__}; give a text or a list")
    return tuple(_text(_passage(value), where, name) for value in values)


def _passage(value: Any) -> Any:
    """Return the text of a passage that is an object, as Tevatron and Automodel write it."""
    return titled(value) if isinstance(value, Mapping) and "text" in value else value


def titled(passage: Mapping[str, Any]) -> str:
    """Return a passage's title and text, with a blank between."""
    return " ".join(str(part) for part in (passage.get("title"), passage.get("text")) if part)


def passage_id(passage: Any) -> str | None:
    """Return the id of a passage that is an object; None where it has none."""
    if not isinstance(passage, Mapping):
        return None
    found = next((passage[name] for name in PASSAGE_IDS if passage.get(name) is not None), None)
    return None if found is None else str(found)


def _number(value: Any, where: str, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise RecordError(f"{where}: {name!r} holds {value!r}, which is no number")
    return number
