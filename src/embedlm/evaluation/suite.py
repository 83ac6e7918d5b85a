"""Suites: which tasks, on which files, by which metrics. Each is a YAML file; users write theirs.

A task has a kind (`KINDS`), and each kind a class here that says which files and fields it reads.
A task may also `use` one of another suite and change some of its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from embedlm.errors import InputError, RecipeError, closest
from embedlm.evaluation.metrics import ranking_metric
from embedlm.schema.base import Name, Part, validated
from embedlm.schema.yaml_files import known_file, read_mapping

__all__ = [
    "KINDS",
    "PROBES",
    "Bitext",
    "Classification",
    "Clustering",
    "PairClassification",
    "Reranking",
    "Retrieval",
    "Similarity",
    "Suite",
    "Task",
    "known_tasks",
    "named_tasks",
    "packaged",
    "parsed_tasks",
    "suites",
]

RANKED = ("ndcg@10", "map@100", "mrr@10", "recall@10", "recall@100")


class Task(Part):
    """What every task has. The texts of the subclasses' fields name fields of records."""

    kind: str
    summary: str = ""
    licence: str = Field("", description="Of the data.")
    split: str = Field("", description="Takes the place of {split} in the files' names.")
    instruction: str | dict[Literal["query", "document"], str] | None = Field(
        None, description="For models whose prompt takes one; a string is the query's."
    )
    sample: int | None = Field(
        None, gt=1, description="Score so many of the queries, pairs or texts, drawn by seed."
    )
    metric: str

    def paths(self) -> dict[str, str]:
        """Return the files below the data folder, by what they hold."""
        named = self.files.model_dump()  # type: ignore[attr-defined]
        return {what: path.replace("{split}", self.split) for what, path in named.items()}

    def told(self, role: str | None) -> str | None:
        """Return the instruction for a role; None: the model's own."""
        if isinstance(self.instruction, dict):
            return self.instruction.get("document" if role == "document" else "query")
        return None if role == "document" else self.instruction


class PairFile(Part):
    """A file with a pair a record."""

    pairs: str


class PairFields(Part):
    """The fields of a scored or labelled pair."""

    first: str = "s1"
    second: str = "s2"
    gold: str = "score"


class LabelledPairFields(PairFields):
    """The fields of a pair that is labelled 1 or 0."""

    gold: str = "label"


class BitextFields(Part):
    """The fields of a sentence and its translation."""

    first: str = "src"
    second: str = "eng"


class Similarity(Task):
    """Pairs of sentences with a gold similarity, and the correlation with it."""

    kind: Literal["sts"]
    files: PairFile
    fields: PairFields = PairFields()
    metric: Literal[
        "spearman", "pearson", "cosine_spearman", "euclidean_spearman", "manhattan_spearman"
    ] = "spearman"


class PairClassification(Task):
    """Pairs that belong together (1) or do not (0), told apart by a threshold on the similarity."""

    kind: Literal["pair"]
    files: PairFile
    fields: LabelledPairFields = LabelledPairFields()
    metric: Literal["max_ap", "similarity_ap", "cosine_ap"] = "max_ap"


class Bitext(Task):
    """Sentences and their translations: each finds its own among all."""

    kind: Literal["bitext"]
    files: PairFile
    fields: BitextFields = BitextFields()
    metric: Literal["f1", "accuracy"] = "f1"


class RetrievalFiles(Part):
    """A corpus, queries, and which documents answer them."""

    corpus: str
    queries: str
    qrels: str


class RetrievalFields(Part):
    """The fields of the three files; no id (null) stands for the number of the record, from 0."""

    document_id: str | None = "_id"
    title: str | None = "title"
    text: str = "text"
    query_id: str | None = "_id"
    query: str = "text"
    judged_query: str | None = "q"
    judged_document: str | None = "d"
    gain: str | None = Field("rel", description="null: every judged document has gain 1.")


class _Ranked(Task):
    metric: str = "ndcg@10"
    also: tuple[str, ...] = Field(RANKED, description="Further metrics.")

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        ranking_metric(name)
        return name

    @field_validator("also")
    @classmethod
    def _all_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            ranking_metric(name)
        return names

    @property
    def metrics(self) -> list[str]:
        """All metrics, the main one first."""
        return list(dict.fromkeys((self.metric, *self.also)))


class Retrieval(_Ranked):
    """Queries that find their documents in a corpus."""

    kind: Literal["retrieval"]
    files: RetrievalFiles
    fields: RetrievalFields = RetrievalFields()
    ignore_identical_ids: bool = Field(
        False, description="A query is no answer to itself where it is in the corpus too."
    )
    documents: int | None = Field(
        None,
        gt=1,
        description="Search only so many of the corpus: what is judged for a query that is scored, "
        "and every n-th of the others. Scores are higher than in the whole corpus.",
    )


class CandidateFile(Part):
    """A file of queries with their candidates."""

    queries: str


class CandidateFields(Part):
    """The fields of a query with lists of texts that answer it and that do not."""

    query: str = "query"
    positive: str = "positive"
    negative: str = "negative"


class Reranking(_Ranked):
    """Queries that order their own candidates."""

    kind: Literal["rerank"]
    files: CandidateFile
    fields: CandidateFields = CandidateFields()
    metric: str = "map@1000"


class LabelFields(Part):
    """The fields of a labelled text."""

    text: str = "text"
    label: str = "label"


class SplitFiles(Part):
    """Labelled texts to learn from and to predict."""

    train: str
    test: str


class Classification(Task):
    """Classes predicted by a logistic regression on few labelled vectors, several times."""

    kind: Literal["classification"]
    files: SplitFiles
    fields: LabelFields = LabelFields()
    metric: Literal["accuracy"] = "accuracy"
    experiments: int = Field(10, gt=0)
    samples_per_label: int = Field(8, gt=0)


class TextFile(Part):
    """A file of labelled texts."""

    texts: str


class Clustering(Task):
    """Texts that k-means is to put together by their labels."""

    kind: Literal["clustering"]
    files: TextFile
    fields: LabelFields = LabelFields()
    metric: Literal["v_measure"] = "v_measure"
    experiments: int = Field(10, gt=0)
    documents: int | None = Field(None, gt=1, description="Texts that are embedded; null: all.")
    draws: int = Field(16_384, gt=1, description="Texts drawn for an experiment.")


KINDS: dict[str, type[Task]] = {
    "sts": Similarity,
    "pair": PairClassification,
    "bitext": Bitext,
    "retrieval": Retrieval,
    "rerank": Reranking,
    "classification": Classification,
    "clustering": Clustering,
}
"""The kinds of tasks. `evaluation.kinds` has the function that scores each."""
PROBES: dict[str, type[Task]] = {}
"""Further kinds: the module `probes`, which stands on this one, fills them in."""


class Suite(Part):
    """A list of tasks."""

    name: Name
    summary: str = ""
    tasks: dict[Name, dict[str, Any]] = Field(min_length=1)

    @classmethod
    def load(cls, name: str | Path) -> dict[str, Task]:
        """Return the tasks of a suite that comes with the package, or of a .yaml file.

        Raises:
            InputError: no such suite.
            RecipeError: a file that is not valid.
        """
        path = known_file(name, _folder(), "suite")
        return _read(path).parsed(path.name)

    def parsed(self, where: str) -> dict[str, Task]:
        """Return the tasks, each with the fields of the one that it uses.

        Args:
            where: the file's name, which begins an error message.

        Raises:
            RecipeError: a task that is not valid.
        """
        return {task: self._task(task, f"{where}: tasks.{task}") for task in self.tasks}

    def _task(self, name: str, where: str) -> Task:
        fields = self._fields(name, where, ())
        kind, kinds = fields.get("kind"), {**KINDS, **PROBES}
        if kind not in kinds:
            raise RecipeError(
                f"{where}: kind is {kind!r}; allowed: {', '.join(kinds)}."
                + closest(str(kind), list(kinds))
            )
        return validated(kinds[str(kind)], fields, where)

    def _fields(self, name: str, where: str, users: tuple[str, ...]) -> dict[str, Any]:
        """Return a task's fields, and below them those of the task that it uses."""
        own = dict(self.tasks[name])
        used = own.pop("use", None)
        if used is None:
            return own
        suite, _, task = str(used).partition("/")
        other = _read(_folder() / f"{suite}.yaml") if suite in suites() else None
        if other is None or task not in other.tasks or used in users:
            raise RecipeError(
                f"{where}: use: {used!r} is no task, or one that uses this one; write SUITE/TASK "
                f"with a suite of {', '.join(suites())} and a task of it"
            )
        return {**other._fields(task, where, (*users, str(used))), **own}


def parsed_tasks(tasks: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Task]:
    """Return the tasks of another file, written as a suite writes them.

    Args:
        tasks: their fields, by name.
        where: the file's name, which begins an error message.

    Raises:
        RecipeError: a task that is not valid.
    """
    return validated(Suite, {"name": "tasks", "tasks": tasks}, where).parsed(where)


def _read(path: Path) -> Suite:
    return validated(Suite, {"name": path.stem, **read_mapping(path, "suite")}, path.name)


def _folder() -> Path:
    return Path(str(files("embedlm.evaluation"))) / "suites"


def packaged(path: str) -> Path | None:
    """Return the file of the package that a task names by embedlm:NAME; None for other files."""
    start, _, name = path.partition(":")
    return _folder() / "data" / name if start == "embedlm" else None


@lru_cache
def suites() -> list[str]:
    """Return the names of the suites that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


@lru_cache
def known_tasks() -> dict[str, Task]:
    """Return all tasks of all suites of the package, by their names."""
    return {name: task for suite in suites() for name, task in Suite.load(suite).items()}


def named_tasks(names: Sequence[str]) -> dict[str, Task]:
    """Return tasks of the package's suites.

    Raises:
        InputError: no name, or an unknown one.
    """
    known = known_tasks()
    if not names:
        raise InputError(f"no task was given; allowed: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise InputError(
                f"{name!r} is not a task; allowed: {', '.join(known)}." + closest(name, list(known))
            )
    return {name: known[name] for name in names}
