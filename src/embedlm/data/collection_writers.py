"""Records as folders of other libraries: a corpus, queries, and who belongs to whom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from embedlm.data.training_record import Document, TrainingRecord
from embedlm.data.writers import check_form
from embedlm.errors import InputError
from embedlm.jobs import disk_errors, new_folder
from embedlm.jobs.json_files import json_text
from embedlm.jobs.names import check_parent

__all__ = ["FOLDER_FORMS", "write_collection"]

_KEPT = "Nothing was written; make room and run the same command again"


def write_collection(
    records: Iterable[TrainingRecord], folder: str | Path, form: str, split: str = "train"
) -> int:
    """Write records as a folder of a form, which appears whole or not at all.

    Args:
        records: read once.
        folder: may not be there yet.
        form: beir, mteb, gpl, tevatron2 or automodel.
        split: beir, mteb: the name of the judgements.

    Returns:
        The number of records.

    Raises:
        InputError: an unknown form, or a folder that is there.
        JobError: the disk is full.
    """
    check_form(form, FOLDER_FORMS)
    target = Path(folder)
    if target.exists():
        raise InputError(f"the output {str(target)!r} is there already; give another name")
    check_parent(target)
    with disk_errors(target, _KEPT), new_folder(target) as home:
        return FOLDER_FORMS[form](records, home, split)


class _Corpus:
    """Passages by id, each written once."""

    def __init__(self, file: TextIO, fields: tuple[str, str]) -> None:
        self.file, self.fields = file, fields
        self._known: dict[str, bytes] = {}

    def id_of(self, document: Document) -> str:
        """Return a document's id; its passage is written where it is new.

        A document without an id is named by its content, and so is one whose id another text has.
        """
        key = hashlib.blake2b(document.text.encode("utf-8"), digest_size=16)
        id = document.id if document.id is not None else f"d-{key.hexdigest()}"
        if self._known.get(id, key.digest()) != key.digest():
            id = f"{id}-{key.hexdigest()}"
        if id not in self._known:
            self._known[id] = key.digest()
            name, text = self.fields
            self.file.write(json_text({name: id, "title": "", text: document.text}) + "\n")
        return id


def _numbered(records: Iterable[TrainingRecord]) -> Iterator[tuple[str, TrainingRecord]]:
    """Yield each record with an id that no other has."""
    seen: set[str] = set()
    for number, record in enumerate(records, 1):
        others = record.others
        id = str(next((others[k] for k in ("query_id", "id", "_id") if k in others), f"q{number}"))
        id = f"{id}-{number}" if id in seen else id
        seen.add(id)
        yield id, record


def _open(path: Path) -> TextIO:
    path.parent.mkdir(exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n")


def _beir(records: Iterable[TrainingRecord], home: Path, split: str) -> int:
    count = 0
    with (
        _open(home / "corpus.jsonl") as passages,
        _open(home / "queries.jsonl") as queries,
        _open(home / "qrels" / f"{split}.tsv") as qrels,
    ):
        corpus = _Corpus(passages, ("_id", "text"))
        qrels.write("query-id\tcorpus-id\tscore\n")
        for id, record in _numbered(records):
            count += 1
            queries.write(json_text({"_id": id, "text": record.query}) + "\n")
            for documents, score in ((record.positives, 1), (record.negatives, 0)):
                for document in documents:
                    qrels.write(f"{id}\t{corpus.id_of(document)}\t{score}\n")
    return count


def _mteb(records: Iterable[TrainingRecord], home: Path, split: str) -> int:
    count = 0
    with (
        _open(home / "corpus" / f"{split}.jsonl") as passages,
        _open(home / "queries" / f"{split}.jsonl") as queries,
        _open(home / "qrels" / f"{split}.jsonl") as qrels,
    ):
        corpus = _Corpus(passages, ("id", "text"))
        for id, record in _numbered(records):
            count += 1
            queries.write(json_text({"id": id, "text": record.query}) + "\n")
            for documents, score in ((record.positives, 1), (record.negatives, 0)):
                for document in documents:
                    row = {"query-id": id, "corpus-id": corpus.id_of(document), "score": score}
                    qrels.write(json_text(row) + "\n")
    return count


def _gpl(records: Iterable[TrainingRecord], home: Path, split: str) -> int:
    count = 0
    with (
        _open(home / "corpus.jsonl") as passages,
        _open(home / "qgen-queries.jsonl") as queries,
        _open(home / "hard-negatives.jsonl") as mined,
    ):
        corpus = _Corpus(passages, ("_id", "text"))
        for id, record in _numbered(records):
            count += 1
            queries.write(json_text({"_id": id, "text": record.query}) + "\n")
            sides: dict[str, Any] = {"qid": id}
            sides["pos"] = [corpus.id_of(one) for one in record.positives]
            sides["neg"] = {"embedlm": [corpus.id_of(one) for one in record.negatives]}
            mined.write(json_text(sides) + "\n")
    return count


def _tevatron2(records: Iterable[TrainingRecord], home: Path, split: str) -> int:
    count = 0
    with _open(home / "corpus.jsonl") as passages, _open(home / f"{split}.jsonl") as queries:
        corpus = _Corpus(passages, ("docid", "document_text"))
        for id, record in _numbered(records):
            count += 1
            row = {
                "query_id": id,
                "query_text": record.query,
                "query_image": None,
                "positive_document_ids": [corpus.id_of(one) for one in record.positives],
                "negative_document_ids": [corpus.id_of(one) for one in record.negatives],
            }
            queries.write(json_text(row) + "\n")
    return count


def _automodel(records: Iterable[TrainingRecord], home: Path, split: str) -> int:
    data: list[dict[str, Any]] = []
    with _open(home / "corpus" / f"{split}.jsonl") as passages:
        corpus = _Corpus(passages, ("id", "text"))
        for id, record in _numbered(records):
            data.append(
                {
                    "question_id": id,
                    "question": record.query,
                    "corpus_id": "corpus",
                    "pos_doc": [{"id": corpus.id_of(one)} for one in record.positives],
                    "neg_doc": [{"id": corpus.id_of(one)} for one in record.negatives],
                }
            )
    about = {"class": "TextQADataset", "corpus_id": "corpus"}
    with _open(home / "corpus" / "merlin_metadata.json") as file:
        file.write(json_text(about) + "\n")
    with _open(home / f"{split}.json") as file:
        file.write(json_text({"corpus": [{"path": "corpus"}], "data": data}, indent=1) + "\n")
    return len(data)


FOLDER_FORMS = {
    "beir": _beir,
    "mteb": _mteb,
    "gpl": _gpl,
    "tevatron2": _tevatron2,
    "automodel": _automodel,
}
"""Writers by the name of the form; a line here adds one."""
