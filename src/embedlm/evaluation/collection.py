"""A corpus that probes search again and again: read, sampled and embedded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.data.words import first_words
from embedlm.errors import RecordError
from embedlm.evaluation.metrics import ranking_metric, score_queries
from embedlm.evaluation.probes import Searched
from embedlm.evaluation.ranking_tasks import ranked_by_head
from embedlm.evaluation.readers import Judged, read_retrieval
from embedlm.evaluation.sample import Sample, uncertainty
from embedlm.evaluation.statistics import SEED, holm, mean_of, sign_flip
from embedlm.evaluation.subject import Subject, drawn
from embedlm.readout.embeddings import Embeddings
from embedlm.readout.quantized import in_floats

__all__ = [
    "Collection",
    "collected",
    "dense_of",
    "judged_sample",
    "losses_told",
    "main_head",
    "query_sample",
]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Collection:
    """Documents with their vectors, and queries with what answers them."""

    subject: Subject
    task: Searched
    documents: dict[str, str]
    vectors: Any
    """Of the documents, as `encode` returned them."""
    queries: dict[str, str]
    relevant: dict[str, dict[str, float]]

    @property
    def relevant_ids(self) -> list[list[str]]:
        """The documents that answer each query."""
        return [[d for d, gain in self.relevant[q].items() if gain > 0] for q in self.queries]

    def encoded(self, queries: Sequence[str], **more: Any) -> Any:
        """Return vectors of texts as queries."""
        return self.subject.encode(list(queries), self.task, "query", **more)

    def scores(self, asked: Any) -> Floats:
        """Return the ranked metric of each query, by the model's main ranking.

        Args:
            asked: vectors of the queries, in their order.
        """
        model, names = self.subject.model, list(self.queries)
        runs = ranked_by_head(model, asked, self.vectors, list(self.documents), names)
        main = "hybrid" if "hybrid" in runs else next(iter(runs))
        return np.array(score_queries(runs[main], self.relevant, [self.task.ranked])[self.metric])

    @property
    def metric(self) -> str:
        """The metric of rankings."""
        return self.task.ranked


def collected(subject: Subject, task: Searched, paths: Mapping[str, Path]) -> Collection:
    """Return a task's collection, with its documents embedded.

    Raises:
        RecordError: no query has a relevant document.
    """
    data = judged_sample(subject, task, paths)
    subject = subject.fitted(list(data.documents.values()))
    vectors = subject.corpus(list(data.documents.values()), task)
    return Collection(subject, task, data.documents, vectors, data.queries, data.relevant)


def judged_sample(subject: Subject, task: Searched, paths: Mapping[str, Path]) -> Judged:
    """Return a retrieval set with the queries of the task's sample and the documents' first words.

    Raises:
        RecordError: fewer than two queries have a relevant document.
    """
    ranking_metric(task.ranked)
    data = read_retrieval(paths, task.fields)
    if len(data.queries) < 2:
        raise RecordError(
            f"{paths['qrels']}: {len(data.queries)} queries of {paths['queries']} have a relevant "
            "document; two at least are needed, and the ids must be the same in both files"
        )
    names = list(data.queries)
    names = [names[i] for i in drawn(len(names), task, SEED)]
    documents = data.documents
    if subject.words is not None:
        documents = {d: first_words(t, subject.words) for d, t in documents.items()}
    return Judged(
        documents,
        {name: data.queries[name] for name in names},
        {name: data.relevant[name] for name in names},
    )


def main_head(subject: Subject) -> list[str]:
    """Return the first head of the recipe, as `encode` and `similarity` take it."""
    return [subject.model.recipe.heads[0].kind]


def dense_of(vectors: Any) -> npt.NDArray[np.float32] | None:
    """Return the dense vectors of what `encode` returned, as numbers; None where there are none."""
    if isinstance(vectors, Embeddings):
        if "dense" not in vectors.heads:
            return None
        vectors = vectors["dense"]
    return np.asarray(in_floats(vectors), dtype=np.float32)


def query_sample(
    collection: Collection, value: npt.ArrayLike, columns: Mapping[str, npt.ArrayLike]
) -> Sample:
    """Return the queries with what the main metric is the mean of, and further columns."""
    return Sample.of(
        "mean",
        "query",
        list(collection.queries),
        [[text] for text in collection.queries.values()],
        {"value": value, **columns},
        collection.relevant_ids,
    )


def losses_told(losses: Mapping[str, Floats], keys: list[list[str]]) -> dict[str, dict[str, Any]]:
    """Return each mean loss with its interval, and the sign-flip p of no loss with Holm's.

    Args:
        losses: of each query, by what caused them.
        keys: what queries share: their relevant documents.
    """
    p = [sign_flip(loss) for loss in losses.values()]
    told = {}
    for (name, loss), one, corrected in zip(losses.items(), p, holm(p), strict=True):
        sure = uncertainty(mean_of(loss), len(loss), keys, loss, share=False)
        interval = [sure.low, sure.high]
        told[name] = {
            "loss": float(loss.mean()), "interval": interval, "p": one, "p_holm": corrected,
        }  # fmt: skip
    return told
