"""Records whose texts stand in other files: BEIR, mteb, GPL, Tevatron 2, Automodel.

Each names passages by ids of a corpus. Only the passages that records name are kept in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from embedlm.data.readers import read_rows
from embedlm.data.records import passage_id, titled
from embedlm.data.training_record import Document, TrainingRecord
from embedlm.data.writers import check_form
from embedlm.errors import InputError, RecordError
from embedlm.jobs.json_files import read_json
from embedlm.schema.arguments import short

__all__ = ["COLLECTIONS", "TRAIN", "read_collection"]

TRAIN = "train"
"""The split of judgements that is read and written where none is named."""

Ids = dict[str, dict[str, list[str]]]
"""By query id: the ids of positives and of negatives."""
_AS_FORM = "give a file of this form, or name another form"
_ENDINGS = (".jsonl", ".parquet", ".tsv", ".csv", ".jsonl.gz", ".tsv.gz")
_QUERY_IDS = ("query-id", "query_id", "qid", "_id", "id")
_PASSAGE_IDS = ("corpus-id", "corpus_id", "docid", "pid")


def read_collection(
    path: str | Path, form: str, *, corpus: str | Path | None = None, split: str | None = None
) -> Iterator[TrainingRecord]:
    """Yield the records of a collection.

    Args:
        path: the folder (beir, mteb, gpl) or file (tevatron2, automodel).
        form: a name of `COLLECTIONS`.
        corpus: tevatron2: the file with the passages.
        split: beir, mteb: which judgements are read; None: train.

    Raises:
        InputError: an unknown form, a missing file, or an option that the form does not take.
        RecordError: a record that names what is not there, with its place.
    """
    check_form(form, COLLECTIONS)
    if (corpus is not None) != (form == "tevatron2"):
        told = "needs the file of its passages (corpus)" if corpus is None else "takes no corpus"
        raise InputError(f"the form {form!r} {told}")
    where = Path(path)
    if not where.exists():
        raise InputError(f"the input {str(where)!r} is not there; check its name")
    yield from COLLECTIONS[form](where, corpus, split)


# -- ids to texts ---------------------------------------------------------------------------------


def _joined(
    found: Ids, queries: Mapping[str, str], corpora: Iterable[Path], where: Path
) -> Iterator[TrainingRecord]:
    """Yield a record for each query, with the texts of its passages."""
    wanted = {id for sides in found.values() for ids in sides.values() for id in ids}
    texts: dict[str, str] = {}
    for file in corpora:
        for place, row in read_rows(file):
            id = passage_id(row)
            if id is None:
                raise RecordError(f"{place}: a passage without an id; give one")
            if id in wanted:
                texts[id] = titled({**row, "text": row.get("text", row.get("document_text"))})
    for query, sides in found.items():
        if query not in queries:
            raise RecordError(f"{where}: the query {query!r} has no text among the queries")
        documents = {
            side: [_document(id, texts, where) for id in dict.fromkeys(ids)]
            for side, ids in sides.items()
        }
        if documents["positives"]:
            record = TrainingRecord(queries[query], documents["positives"], documents["negatives"])
            record.others["id"] = query
            yield record


def _document(id: str, texts: Mapping[str, str], where: Path) -> Document:
    if id not in texts:
        raise RecordError(f"{where}: the passage {id!r} is named, and the corpus has none of it")
    return Document(texts[id], id)


def _file(folder: Path, name: str) -> Path:
    """Return the file of a name, whatever its form; or the one in the folder of that name."""
    for ending in _ENDINGS:
        if (path := folder / f"{name}{ending}").is_file():
            return path
    inner = folder / name
    files = sorted(inner.iterdir()) if inner.is_dir() else []
    found = [one for one in files if one.name.endswith(_ENDINGS)]
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"{folder} has no file {name} ({', '.join(_ENDINGS)})"
        + (f", and {inner} holds {len(found)}" if inner.is_dir() else "")
        + "; give a folder of this form, or name another form or split"
    )


def _first(row: Mapping[str, Any], names: Iterable[str], where: str) -> str:
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    raise RecordError(f"{where}: has none of {', '.join(names)}; there are: {', '.join(row)}")


def _listed(row: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """Return the list of a field; an empty one where there is none."""
    found = row.get(name)
    if found is not None and not isinstance(found, list | tuple):
        raise RecordError(f"{where}: {name!r} is {short(found)}; give a list of ids")
    return list(found or ())


def _grade(row: Mapping[str, Any], where: str) -> float:
    """Return how well a passage answers; 1 where the row does not say."""
    found = next((row[name] for name in ("score", "relevance") if name in row), 1)
    try:
        grade = float(found)
    except (TypeError, ValueError):
        grade = math.nan
    if not math.isfinite(grade):
        raise RecordError(f"{where}: the score is {short(found)}; give a number")
    return grade


def _queries(path: Path) -> dict[str, str]:
    return {
        _first(row, _QUERY_IDS, where): _first(row, ("text", "query", "question"), where)
        for where, row in read_rows(path)
    }


# -- the forms ------------------------------------------------------------------------------------


def _beir(folder: Path, corpus: Any, split: str | None) -> Iterator[TrainingRecord]:
    """Read corpus, queries and qrels/SPLIT; judgements of 0 or less are negatives."""
    splits = (folder / "qrels").is_dir()
    if split is not None and not splits:
        raise InputError(f"{folder} has one file of judgements, and no splits; leave split out")
    qrels = _file(folder / "qrels", split or TRAIN) if splits else None
    found: Ids = {}
    for where, row in read_rows(qrels or _file(folder, "qrels")):
        sides = found.setdefault(_first(row, _QUERY_IDS, where), {"positives": [], "negatives": []})
        grade = _grade(row, where)
        id = _first(row, _PASSAGE_IDS, where)
        sides["positives" if grade > 0 else "negatives"].append(id)
    yield from _joined(found, _queries(_file(folder, "queries")), [_file(folder, "corpus")], folder)


def _mteb(folder: Path, corpus: Any, split: str | None) -> Iterator[TrainingRecord]:
    """Read the configurations corpus, queries and qrels (or default), each a folder of splits."""
    parts = {}
    for name in ("corpus", "queries", "qrels"):
        home = folder / ("default" if name == "qrels" and not (folder / name).exists() else name)
        files = sorted(home.glob(f"{split or TRAIN}*")) if home.is_dir() else []
        if name == "qrels" and split is not None and not files:
            raise InputError(f"{home} has no file of the split {split!r}; name one that it has")
        parts[name] = files[0] if files else _file(folder, home.name)
    found: Ids = {}
    for where, row in read_rows(parts["qrels"]):
        sides = found.setdefault(_first(row, _QUERY_IDS, where), {"positives": [], "negatives": []})
        side = "positives" if _grade(row, where) > 0 else "negatives"
        sides[side].append(_first(row, _PASSAGE_IDS, where))
    yield from _joined(found, _queries(parts["queries"]), [parts["corpus"]], folder)


def _gpl(folder: Path, corpus: Any, split: str | None) -> Iterator[TrainingRecord]:
    """Read hard-negatives.jsonl: {qid, pos: [...], neg: {miner: [...]}}."""
    found: Ids = {}
    for where, row in read_rows(_file(folder, "hard-negatives")):
        negatives = row.get("neg") or {}
        if not isinstance(negatives, dict):
            raise RecordError(f"{where}: neg holds no lists by miner, {{miner: [...]}}")
        found[_first(row, _QUERY_IDS, where)] = {
            "positives": [str(id) for id in _listed(row, "pos", where)],
            "negatives": [str(id) for name in negatives for id in _listed(negatives, name, where)],
        }
    names = ("qgen-queries", "queries")
    queries = next((n for n in names if (folder / f"{n}.jsonl").is_file()), names[1])
    yield from _joined(found, _queries(_file(folder, queries)), [_file(folder, "corpus")], folder)


def _tevatron2(file: Path, corpus: Any, split: str | None) -> Iterator[TrainingRecord]:
    """Read {query_id, query_text, positive_document_ids, negative_document_ids}."""
    found: Ids = {}
    queries: dict[str, str] = {}
    for where, row in read_rows(file):
        id = _first(row, _QUERY_IDS, where)
        if row.get("query_image") and not row.get("query_text"):
            raise RecordError(f"{where}: a query of an image alone; only texts are read")
        queries[id] = _first(row, ("query_text", "query"), where)
        found[id] = {
            "positives": [str(one) for one in _listed(row, "positive_document_ids", where)],
            "negatives": [str(one) for one in _listed(row, "negative_document_ids", where)],
        }
    yield from _joined(found, queries, [Path(corpus)], file)


def _automodel(file: Path, corpus: Any, split: str | None) -> Iterator[TrainingRecord]:
    """Read {"corpus": [{"path"}], "data": [{question_id, question, pos_doc, neg_doc}]}."""
    content = read_json(file, InputError, _AS_FORM)
    lists = [
        content.get(part) if isinstance(content, dict) else None for part in ("corpus", "data")
    ]
    if not all(isinstance(one, list) and all(isinstance(e, dict) for e in one) for one in lists):
        raise InputError(
            f'{file} has another form; expected is {{"corpus": [{{"path": ...}}], "data": '
            '[{"question_id": ..., "question": ..., "pos_doc": [...], "neg_doc": [...]}]}'
        )
    corpora: list[Path] = []
    for number, one in enumerate(content["corpus"], 1):
        home = file.parent / _first(one, ("path",), f"{file}:corpus[{number}]")
        corpora += (
            [path for path in sorted(home.iterdir()) if path.name.endswith(_ENDINGS)]
            if home.is_dir()
            else [home]
        )
    found, queries = {}, {}
    for number, row in enumerate(content["data"], 1):
        where = f"{file}:data[{number}]"
        id = _first(row, ("question_id", "query_id", "id"), where)
        queries[id] = _first(row, ("question", "query"), where)
        found[id] = {
            side: [
                (passage_id(one) if isinstance(one, Mapping) else None) or str(one)
                for one in _listed(row, name, where)
            ]
            for side, name in (("positives", "pos_doc"), ("negatives", "neg_doc"))
        }
    yield from _joined(found, queries, corpora, file)


def _medi(file: Path, corpus: Any, split: str | None) -> Iterator[TrainingRecord]:
    """Read MEDI: {query, pos, neg}, each [instruction, text], with task_name; a list or lines."""
    rows: Iterable[tuple[str, Any]]
    if file.suffix == ".json":
        found = read_json(file, InputError, _AS_FORM)
        if not isinstance(found, list):
            raise InputError(f"{file} holds no list; expected is a list of {{query, pos, neg}}")
        rows = ((f"{file}[{i}]", row) for i, row in enumerate(found, 1))
    else:
        rows = read_rows(file)
    for where, row in rows:
        fields = row if isinstance(row, dict) else {}
        pairs: list[Any] = [fields.get(name) for name in ("query", "pos", "neg")]
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise RecordError(f"{where}: query, pos and neg are not [instruction, text] each")
        (instruction, query), (_, positive), (_, negative) = pairs
        record = TrainingRecord(str(query), [Document(str(positive))], [Document(str(negative))])
        record.instruction = str(instruction).strip() or None
        if "task_name" in row:
            record.others["task"] = str(row["task_name"])
        yield record


COLLECTIONS: dict[str, Callable[[Path, Any, str | None], Iterator[TrainingRecord]]] = {
    "beir": _beir,
    "mteb": _mteb,
    "gpl": _gpl,
    "tevatron2": _tevatron2,
    "automodel": _automodel,
    "medi": _medi,
}
"""Readers by the name of the form; a line here adds one."""
