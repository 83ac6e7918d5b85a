"""Records whose texts stand in other files: BEIR, mteb, GPL, Tevatron 2, Automodel.

Each names passages by ids of a corpus. Only the passages that records name are kept in memory.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.data.compression import COMPRESSIONS
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
_FORMS = (".jsonl", ".parquet", ".tsv", ".csv")
_FILE = re.compile(
    rf"(?P<stem>.+?)(-\d{{5}}-of-(?P<count>\d{{5}}))?({'|'.join(map(re.escape, _FORMS))})"
    rf"({'|'.join(map(re.escape, COMPRESSIONS))})?"
)
"""A file's name; the hub cuts a large one into NAME-00000-of-00002 and so on."""
_QUERY_IDS = ("query-id", "query_id", "qid", "_id", "id", "q")
_PASSAGE_IDS = ("corpus-id", "corpus_id", "docid", "pid", "d")
_GRADES = ("score", "relevance", "rel")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is read of a collection; see `read_collection`."""

    corpus: str | Path | None
    split: str | None
    left_out: Counter[str] | None
    unanswered: Counter[str]

    def lacks(self, what: str, told: str) -> None:
        """Count what is named and not there, or refuse it."""
        if self.left_out is None:
            raise RecordError(f"{told}; add it, or leave out all such (--skip-missing, left_out=)")
        self.left_out[what] += 1


def read_collection(
    path: str | Path,
    form: str,
    *,
    corpus: str | Path | None = None,
    split: str | None = None,
    left_out: Counter[str] | None = None,
    unanswered: Counter[str] | None = None,
) -> Iterator[TrainingRecord]:
    """Yield the records of a collection.

    Args:
        path: the folder (beir, mteb, gpl) or file (tevatron2, automodel).
        form: a name of `COLLECTIONS`.
        corpus: tevatron2: the file with the passages.
        split: beir, mteb: which judgements are read; None: train.
        left_out: counts queries and passages that are named and not there, which are then left
            out; None: the first of them is an error.
        unanswered: counts queries that no passage answers, which are left out in any case.

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
    if form == "medi" and left_out is not None:
        raise InputError(
            "the form 'medi' holds its texts, and none can be missing; leave left_out "
            "(--skip-missing) out"
        )
    asked = _Asked(corpus, split, left_out, Counter() if unanswered is None else unanswered)
    yield from COLLECTIONS[form](where, asked)


# -- ids to texts ---------------------------------------------------------------------------------


def _joined(
    found: Ids, queries: Mapping[str, str], corpora: Iterable[Path], where: Path, asked: _Asked
) -> Iterator[TrainingRecord]:
    """Yield a record for each query, with the texts of its passages."""
    wanted = {id for sides in found.values() for ids in sides.values() for id in ids}
    texts = _passages(corpora, wanted)
    for query, sides in found.items():
        if query not in queries:
            asked.lacks(
                "queries that have no text",
                f"{where}: the query {query!r} is judged and has no text among the queries",
            )
            continue
        documents: dict[str, list[Document]] = {side: [] for side in sides}
        for side, ids in sides.items():
            for id in dict.fromkeys(ids):
                if id in texts:
                    documents[side].append(Document(texts[id], id))
                else:
                    asked.lacks(
                        f"{side} that the corpus lacks",
                        f"{where}: the passage {id!r} is named, and the corpus has none of it",
                    )
        if documents["positives"]:
            record = TrainingRecord(queries[query], documents["positives"], documents["negatives"])
            record.others["id"] = query
            yield record
        elif sides["positives"]:
            asked.lacks("queries of which no positive is left", f"{where}: the query {query!r}")
        else:
            asked.unanswered["queries without a positive (all their grades are 0 or less)"] += 1


def _passages(corpora: Iterable[Path], wanted: set[str]) -> dict[str, str]:
    """Return the texts of the passages that are named, by their ids."""
    texts: dict[str, str] = {}
    for place, row in _rows(corpora):
        id = passage_id(row)
        if id is None:
            raise RecordError(f"{place}: a passage without an id; give one")
        if id in wanted:
            text = titled({**row, "text": row.get("text", row.get("document_text"))})
            _keep(texts, id, text, place)
    return texts


def _files(folder: Path, name: str) -> list[Path]:
    """Return the file of a name, or its parts; or those that the folder of that name holds.

    Raises:
        InputError: there is none, or the folder holds several.
    """
    inner = _by_name(folder / name)
    only = next(iter(inner.values())) if len(inner) == 1 else []
    if found := _by_name(folder).get(name, only):
        return _whole(found)
    raise InputError(
        f"{folder} has no file {name} ({', '.join(_FORMS)}, also compressed)"
        + (f", and {folder / name} holds {len(inner)}" if (folder / name).is_dir() else "")
        + "; give a folder of this form, or name another form or split"
    )


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder that can be read, by their names without part and ending."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (named := _FILE.fullmatch(path.name)) is not None:
            found.setdefault(named["stem"], []).append(path)
    return found


def _whole(paths: list[Path]) -> list[Path]:
    """Return one file of several forms, or all parts of one, as the hub cuts large files.

    Raises:
        InputError: a part is not there.
    """
    counts = {path: found["count"] for path in paths if (found := _FILE.fullmatch(path.name))}
    whole = [path for path, count in counts.items() if count is None]
    if whole:
        return [min(whole, key=lambda path: [form in path.name for form in _FORMS].index(True))]
    count = int(next(iter(counts.values())))
    if len(paths) != count:
        raise InputError(f"{paths[0]} is one of {count} parts, and {len(paths)} are there; get all")
    return paths


def _rows(files: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in files:
        yield from read_rows(file)


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
    found = next((row[name] for name in _GRADES if name in row), 1)
    try:
        grade = float(found)
    except (TypeError, ValueError):
        grade = math.nan
    if not math.isfinite(grade):
        raise RecordError(f"{where}: the score is {short(found)}; give a number")
    return grade


def _queries(files: Iterable[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, row in _rows(files):
        text = _first(row, ("text", "query", "question"), where)
        _keep(found, _first(row, _QUERY_IDS, where), text, where)
    return found


def _keep(texts: dict[str, str], id: str, text: str, where: str) -> None:
    """Take a text under its id, which no other text may have."""
    if texts.setdefault(id, text) != text:
        raise RecordError(f"{where}: the id {id!r} has another text above; give each its own")


def _judged(files: Iterable[Path]) -> Ids:
    """Return the passages that are judged for each query; grades of 0 or less are negatives."""
    found: Ids = {}
    grades: dict[tuple[str, str], float] = {}
    for where, row in _rows(files):
        query, passage = _first(row, _QUERY_IDS, where), _first(row, _PASSAGE_IDS, where)
        grade = _grade(row, where)
        if grades.setdefault((query, passage), grade) != grade:
            raise RecordError(
                f"{where}: the passage {passage!r} has another score for {query!r} above; "
                "leave one of the two out"
            )
        sides = found.setdefault(query, {"positives": [], "negatives": []})
        sides["positives" if grade > 0 else "negatives"].append(passage)
    return found


# -- the forms ------------------------------------------------------------------------------------


def _beir(folder: Path, asked: _Asked) -> Iterator[TrainingRecord]:
    """Read corpus, queries and qrels/SPLIT; judgements of 0 or less are negatives."""
    splits = (folder / "qrels").is_dir()
    if asked.split is not None and not splits:
        raise InputError(f"{folder} has one file of judgements, and no splits; leave split out")
    qrels = _files(folder / "qrels", asked.split or TRAIN) if splits else _files(folder, "qrels")
    queries, corpus = _files(folder, "queries"), _files(folder, "corpus")
    yield from _joined(_judged(qrels), _queries(queries), corpus, folder, asked)


def _mteb(folder: Path, asked: _Asked) -> Iterator[TrainingRecord]:
    """Read the configurations corpus, queries and qrels (or default), each a folder of splits."""
    split = asked.split or TRAIN
    parts = {}
    for name in ("corpus", "queries", "qrels"):
        home = folder / ("default" if name == "qrels" and not (folder / name).exists() else name)
        files = _by_name(home).get(split)
        if name == "qrels" and asked.split is not None and not files:
            raise InputError(f"{home} has no file of the split {split!r}; name one that it has")
        parts[name] = _whole(files) if files else _files(folder, home.name)
    found, queries = _judged(parts["qrels"]), _queries(parts["queries"])
    yield from _joined(found, queries, parts["corpus"], folder, asked)


def _gpl(folder: Path, asked: _Asked) -> Iterator[TrainingRecord]:
    """Read hard-negatives.jsonl: {qid, pos: [...], neg: {miner: [...]}}."""
    found: Ids = {}
    for where, row in _rows(_files(folder, "hard-negatives")):
        negatives = row.get("neg") or {}
        if not isinstance(negatives, dict):
            raise RecordError(f"{where}: neg holds no lists by miner, {{miner: [...]}}")
        found[_first(row, _QUERY_IDS, where)] = {
            "positives": [str(id) for id in _listed(row, "pos", where)],
            "negatives": [str(id) for name in negatives for id in _listed(negatives, name, where)],
        }
    own = "qgen-queries" in _by_name(folder)
    queries = _files(folder, "qgen-queries" if own else "queries")
    yield from _joined(found, _queries(queries), _files(folder, "corpus"), folder, asked)


def _tevatron2(file: Path, asked: _Asked) -> Iterator[TrainingRecord]:
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
    yield from _joined(found, queries, [Path(str(asked.corpus))], file, asked)


def _automodel(file: Path, asked: _Asked) -> Iterator[TrainingRecord]:
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
            [path for path in sorted(home.iterdir()) if _FILE.fullmatch(path.name)]
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
    yield from _joined(found, queries, corpora, file, asked)


def _medi(file: Path, asked: _Asked) -> Iterator[TrainingRecord]:
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


COLLECTIONS: dict[str, Callable[[Path, _Asked], Iterator[TrainingRecord]]] = {
    "beir": _beir,
    "mteb": _mteb,
    "gpl": _gpl,
    "tevatron2": _tevatron2,
    "automodel": _automodel,
    "medi": _medi,
}
"""Readers by the name of the form; a line here adds one."""
