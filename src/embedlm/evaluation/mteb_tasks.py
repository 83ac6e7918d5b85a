"""mteb's own tasks: online, or the same classes over local files.

A task's files lie in a folder of its name (of its name and subset, where it has several), in mteb's
columns: `SPLIT.jsonl`, or of retrieval `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.jsonl` (or
.tsv), with `top_ranked/SPLIT.jsonl` where queries rank documents of their own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedlm.data import existing, read_rows
from embedlm.errors import InputError, RecordError, closest, require
from embedlm.evaluation.mteb_models import EmbedLMReranker, mteb_model
from embedlm.evaluation.mteb_units import units_of
from embedlm.evaluation.readers import number_of, text_of
from embedlm.evaluation.results import Result, with_interval
from embedlm.jobs.user_cache import user_cache

__all__ = ["local_task", "mteb_results"]

_FORMS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def mteb_results(
    model: Any,
    names: Sequence[str],
    *,
    data: Path | None = None,
    cache: Path | None = None,
    restart: bool = False,
    on_result: Callable[[Result], object] | None = None,
    **options: Any,
) -> list[Result]:
    """Score a model on tasks of mteb, by mteb.

    mteb's own result files are kept in the folder `mteb` of the cache, under a hash of weights and
    recipe; finished tasks are not run again.

    Args:
        model: an Embedder, a Reranker, what either is loaded from, or a model of mteb.
        names: of mteb's tasks.
        data: a folder of local files; None: mteb loads the data from the hub.
        cache: a folder; None takes the one of `embedlm evaluate`.
        restart: run again what is finished.
        on_result: called with each result as soon as it is there.
        **options: of `Embedder.encode`.

    Raises:
        InputError: an unknown task, or data that cannot be had.
        MissingExtraError: mteb is missing.
    """
    mteb = require("mteb", "mteb")
    tasks = [_task(mteb, name, data) for name in names]
    adapter = model if hasattr(model, "mteb_model_meta") else mteb_model(model, **options)
    folder = (cache or user_cache() / "evaluate") / "mteb"
    results = []
    for task in tasks:
        place = folder
        if data is not None:
            # mteb takes a finished score whatever the revision of its data.
            place = folder / f"local-{task.metadata.revision[:12]}"
        result = _scored(mteb, adapter, task, place, restart=restart)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


def _task(mteb: Any, name: str, data: Path | None) -> Any:
    own = name.removeprefix("mteb/")
    try:
        task = mteb.get_task(own)
    except KeyError as error:
        known = [found.metadata.name for found in mteb.get_tasks(exclude_superseded=False)]
        raise InputError(
            f"{name!r} is no task of mteb {mteb.__version__}.{closest(own, known)} "
            "mteb.get_tasks() lists them"
        ) from error
    return task if data is None else local_task(task, data)


# -- local files ------------------------------------------------------------------------------


def local_task(task: Any, folder: Path) -> Any:
    """Return a task of mteb that reads local files in place of the hub's.

    The data's revision is a hash of the files, so that scores of other files are not taken.

    Args:
        task: a task of mteb.
        folder: holds a folder of the task's name.

    Raises:
        InputError: a file is not there.
        RecordError: a record without a column that the task needs.
    """
    own = folder / task.metadata.name
    if not own.is_dir():
        raise InputError(
            f"the folder {str(own)!r} is not there; it must hold the files of the task, or leave "
            "--data out to let mteb load them from the hub"
        )
    subsets = task.hf_subsets if task.metadata.is_multilingual else ["default"]
    read: list[Path] = []
    ranked = hasattr(task, "_top_k")
    dataset: dict[str, Any] = {}
    for subset in subsets:
        place = own / subset if task.metadata.is_multilingual else own
        splits = list(task.eval_splits)
        if not ranked and getattr(task, "train_split", None):
            splits = [task.train_split, *splits]
        dataset[subset] = (_ranked if ranked else _split_rows)(place, splits, read)
    whole = dataset if ranked or task.metadata.is_multilingual else dataset["default"]

    def load_data(num_proc: int | None = None, **_: Any) -> None:
        task.dataset, task.data_loaded = whole, True

    digest = hashlib.sha256()
    for path in sorted(read):
        digest.update(path.read_bytes())
    source = {**task.metadata.dataset, "revision": digest.hexdigest()[:40]}
    task.metadata = task.metadata.model_copy(update={"dataset": source})
    task.load_data = load_data
    return task


def _file(place: Path, name: str, read: list[Path]) -> Path:
    for form in _FORMS:
        if (found := existing(place / f"{name}{form}")) is not None:
            read.append(found)
            return found
    raise InputError(
        f"{place / name}.jsonl is not there (nor .json, .csv, .tsv or .parquet, nor with .gz, .xz "
        "or .zst); put the task's file there"
    )


def _split_rows(place: Path, splits: Sequence[str], read: list[Path]) -> Any:
    """Return the rows of each split, as they are."""
    datasets = require("datasets", "data")
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list(
                [row for _, row in read_rows(_file(place, split, read))]
            )
            for split in dict.fromkeys(splits)
        }
    )


def _ranked(place: Path, splits: Sequence[str], read: list[Path]) -> dict[str, Any]:
    """Return corpus, queries and relevant documents of each split."""
    datasets = require("datasets", "data")
    corpus = [
        {
            "id": _id(row, where),
            "title": row.get("title") or "",
            "text": text_of(row, where, "text"),
        }
        for where, row in read_rows(_file(place, "corpus", read))
    ]
    queries = [
        {
            "id": _id(row, where),
            "text": text_of(row, where, "text"),
            **({"instruction": row["instruction"]} if "instruction" in row else {}),
        }
        for where, row in read_rows(_file(place, "queries", read))
    ]
    found = {}
    for split in splits:
        relevant: dict[str, dict[str, int]] = {}
        for where, row in read_rows(_file(place / "qrels", split, read)):
            query, document = (text_of(row, where, name) for name in ("query-id", "corpus-id"))
            gain = number_of(row, where, "score")
            if gain != int(gain):
                raise RecordError(f"{where}: 'score' is {gain}; mteb's are whole numbers")
            relevant.setdefault(query, {})[document] = int(gain)
        found[split] = {
            "corpus": datasets.Dataset.from_list(corpus),
            "queries": datasets.Dataset.from_list([q for q in queries if q["id"] in relevant]),
            "relevant_docs": relevant,
            "top_ranked": _top_ranked(place, split, read),
        }
    return found


def _top_ranked(place: Path, split: str, read: list[Path]) -> dict[str, list[str]] | None:
    if not (place / "top_ranked").is_dir():
        return None
    listed = {}
    for where, row in read_rows(_file(place / "top_ranked", split, read)):
        ids = row.get("corpus-ids")
        if not isinstance(ids, list):
            raise RecordError(f"{where}: 'corpus-ids' is no list of documents' ids")
        listed[text_of(row, where, "query-id")] = [str(one) for one in ids]
    return listed


def _id(row: Mapping[str, Any], where: str) -> str:
    return text_of(row, where, "_id" if "_id" in row else "id")


# -- running ----------------------------------------------------------------------------------


def _scored(mteb: Any, adapter: Any, task: Any, folder: Path, *, restart: bool) -> Result:
    meta = adapter.mteb_model_meta
    predictions = folder / "predictions" / meta.name.replace("/", "__") / meta.revision
    cache = mteb.ResultCache(folder)
    name = task.metadata.name
    if isinstance(adapter, EmbedLMReranker) and not hasattr(task, "_top_k"):
        raise InputError(f"{name} is no task that a re-ranker can do; take a re-ranking task")
    try:
        (found,) = mteb.evaluate(
            adapter,
            [task],
            cache=cache,
            overwrite_strategy="always" if restart else "only-missing",
            prediction_folder=predictions,
            co2_tracker=False,
            show_progress_bar=False,
        ).task_results
    except (OSError, ConnectionError) as error:
        raise InputError(
            f"mteb cannot load the data of {name}: {str(error).splitlines()[0]}; check the "
            "network, or give local files with --data"
        ) from error
    return _result(task, found, predictions / f"{name}_predictions.json")


def _result(task: Any, found: Any, predictions: Path) -> Result:
    """Return mteb's result as one of ours, with an interval over units where mteb keeps them."""
    metric = task.metadata.main_score
    parts = [part for split in found.scores.values() for part in split]
    score = float(found.get_score())
    more = {}
    if len(parts) == 1:
        more = {
            key: float(value)
            for key, value in parts[0].items()
            if isinstance(value, int | float)
            and math.isfinite(value)
            and key not in (metric, "main_score")
        }
    notes = {
        "kind": "mteb",
        "mteb": {
            "version": found.mteb_version,
            "type": task.metadata.type,
            "dataset_revision": found.dataset_revision,
            "scores": found.scores,
        },
    }
    seconds = float(found.evaluation_time or 0.0)
    plain = Result(task.metadata.name, metric, score, seconds, more, notes=notes)
    if len(parts) != 1 or not predictions.is_file():
        return plain
    sample = units_of(task, metric, parts[0], predictions)
    return plain if sample is None else with_interval(plain, sample)
