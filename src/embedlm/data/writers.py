"""Records in the forms that other libraries train on, a JSON object a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from embedlm.data.training_record import Document, TrainingRecord
from embedlm.errors import InputError, closest
from embedlm.jobs.json_files import json_text

__all__ = ["RECORD_FORMS", "check_form", "record_lines"]


def _own(record: TrainingRecord) -> Iterator[dict[str, Any]]:
    yield record.to_json()


def _sentence_transformers(record: TrainingRecord) -> Iterator[dict[str, Any]]:
    """Yield a triplet for each positive with each negative, as `mine_hard_negatives` does."""
    for positive in record.positives:
        for negative in record.negatives:
            row = {"anchor": record.query, "positive": positive.text, "negative": negative.text}
            if positive.score is None or negative.score is None:
                yield row
            else:
                yield {**row, "scores": [positive.score, negative.score]}


def _flag_embedding(record: TrainingRecord) -> Iterator[dict[str, Any]]:
    row: dict[str, Any] = {
        "query": record.query,
        "pos": [document.text for document in record.positives],
        "neg": [document.text for document in record.negatives],
    }
    if all(document.score is not None for document in record.documents):
        row["pos_scores"] = [document.score for document in record.positives]
        row["neg_scores"] = [document.score for document in record.negatives]
    yield row if record.instruction is None else {**row, "prompt": record.instruction}


def _tevatron(record: TrainingRecord) -> Iterator[dict[str, Any]]:
    query_id = next((record.others[k] for k in ("query_id", "id", "_id") if k in record.others), "")
    yield {
        "query_id": str(query_id),
        "query": record.query,
        "positive_passages": [_passage(document) for document in record.positives],
        "negative_passages": [_passage(document) for document in record.negatives],
    }


def _passage(document: Document) -> dict[str, str]:
    return {"docid": document.id or "", "title": "", "text": document.text}


def _e5(record: TrainingRecord) -> Iterator[dict[str, Any]]:
    """Yield a row for each positive with each negative, as LLM2Vec's files of E5's data."""
    for positive in record.positives:
        for negative in record.negatives or [Document("")]:
            row = {"query": record.query, "positive": positive.text}
            yield {**row, "negative": negative.text} if negative.text else row


RECORD_FORMS: dict[str, Callable[[TrainingRecord], Iterator[dict[str, Any]]]] = {
    "records": _own,
    "sentence-transformers": _sentence_transformers,
    "flagembedding": _flag_embedding,
    "tevatron": _tevatron,
    "e5": _e5,
}
"""What a record becomes, by the name of the form; a line here adds one."""


def check_form(form: str, allowed: Iterable[str] = RECORD_FORMS) -> None:
    """Refuse a form that is not allowed; without `allowed`, one that no writer of files has.

    Raises:
        InputError: names the forms.
    """
    names = list(allowed)
    if form not in names:
        raise InputError(
            f"the form {form!r} is not known; allowed: {', '.join(names)}.{closest(form, names)}"
        )


def record_lines(record: TrainingRecord, form: str) -> Iterator[bytes]:
    """Yield the lines of a record in one of `RECORD_FORMS`."""
    for row in RECORD_FORMS[form](record):
        yield json_text(row).encode("utf-8") + b"\n"
