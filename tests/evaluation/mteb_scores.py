"""The scores that mteb gives the known vectors on the known data."""

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from mteb import evaluate
from mteb.abstasks import (
    AbsTaskBitextMining,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta

from embedlm.evaluation.ranking_tasks import _hashed
from tests.evaluation.known import Known, records


class Encoder:
    """The known vectors as a model of mteb."""

    def __init__(self):
        self.model = Known()
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={"name": "own/known", "revision": "1"}
        )

    def encode(self, inputs, **_):
        return self.model.encode([text for batch in inputs for text in batch["text"]])

    def similarity(self, a, b):
        return torch.from_numpy(self.model.similarity(a, b))

    def similarity_pairwise(self, a, b):
        return torch.from_numpy(self.model.similarity_pairwise(a, b))


def _task(base, kind, metric, dataset, **fields):
    class Local(base):
        metadata = TaskMetadata(
            name="Local",
            description="known vectors",
            type=kind,
            main_score=metric,
            dataset={"path": "local", "revision": "1"},
            eval_langs=["eng-Latn"],
            eval_splits=["test"],
            date=("2026-01-01", "2026-01-02"),
            domains=["Written"],
            category="t2t",
            modalities=["text"],
            license="not specified",
            annotations_creators="derived",
            task_subtypes=[],
            dialect=[],
            sample_creation="created",
            bibtex_citation="",
            reference="https://example.org",
        )

        def load_data(self, num_proc=None, **_):
            self.dataset, self.data_loaded = dataset, True

    for name, value in fields.items():
        setattr(Local, name, value)
    return Local()


def _columns(rows, **names):
    return Dataset.from_list([{new: row[old] for new, old in names.items()} for row in rows])


def _ranked(corpus, queries, relevant, top_ranked=None):
    return {
        "default": {
            "test": {
                "corpus": Dataset.from_list([{"id": i, "title": "", "text": t} for i, t in corpus]),
                "queries": Dataset.from_list([{"id": i, "text": t} for i, t in queries]),
                "relevant_docs": relevant,
                "top_ranked": top_ranked,
            }
        }
    }


def mteb_scores():
    """Return mteb's scores of every task."""
    data = records()
    test = lambda rows: DatasetDict({"test": rows})  # noqa: E731
    relevant = {}
    for row in data["qrels.jsonl"]:
        relevant.setdefault(row["q"], {})[row["d"]] = row["rel"]
    retrieval = _ranked(
        [(r["_id"], r["text"]) for r in data["corpus.jsonl"]],
        [(r["_id"], r["text"]) for r in data["queries.jsonl"]],
        relevant,
    )
    wiki = data["wiki.jsonl"]
    gains = {
        str(n): {_hashed(t): int(t in row["positive"]) for t in row["positive"] + row["negative"]}
        for n, row in enumerate(wiki)
    }
    texts = [t for row in wiki for t in row["positive"] + row["negative"]]
    rerank = _ranked(
        [(_hashed(t), t) for t in texts],
        [(str(n), row["query"]) for n, row in enumerate(wiki)],
        gains,
        {n: list(own) for n, own in gains.items()},
    )
    two = {"sentence1": "s1", "sentence2": "s2"}
    tasks = {
        "sts": _task(
            AbsTaskSTS,
            "STS",
            "cosine_spearman",
            test(_columns(data["sts.jsonl"], **two, score="score")),
            min_score=0,
            max_score=5,
        ),
        "pair": _task(
            AbsTaskPairClassification,
            "PairClassification",
            "max_ap",
            test(_columns(data["pairs.jsonl"], **two, labels="label")),
        ),
        "bitext": _task(
            AbsTaskBitextMining,
            "BitextMining",
            "f1",
            test(_columns(data["bitext.jsonl"], sentence1="src", sentence2="eng")),
        ),
        "classification": _task(
            AbsTaskClassification,
            "Classification",
            "accuracy",
            DatasetDict(
                {
                    part: _columns(data[f"{part}.jsonl"], text="text", label="label")
                    for part in ("train", "test")
                }
            ),
        ),
        "clustering": _task(
            AbsTaskClustering,
            "Clustering",
            "v_measure",
            test(_columns(data["clusters.jsonl"], sentences="text", labels="label")),
            max_fraction_of_documents_to_embed=None,
            max_document_to_embed=100,
            max_documents_per_cluster=512,
        ),
        "retrieval": _task(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", retrieval),
        "rerank": _task(AbsTaskRetrieval, "Reranking", "map_at_1000", rerank),
    }
    found = {}
    for name, task in tasks.items():
        (result,) = evaluate(
            Encoder(), [task], cache=None, co2_tracker=False, show_progress_bar=False
        )
        (scores,) = result.scores["test"]
        found[name] = {
            key: float(value)
            for key, value in scores.items()
            if isinstance(value, int | float | np.number) and not key.startswith("nauc")
        }
    return found
