"""How likely right documents are among others: the contrastive entropy of dense retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.special import logsumexp

from embedlm.errors import RecordError
from embedlm.evaluation.readers import read_fields
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.subject import Scored, Subject, drawn
from embedlm.evaluation.suite import PROBES, PairFile, Task
from embedlm.schema.base import Part

__all__ = ["Contrast", "contrast"]


class ContrastFields(Part):
    """The fields of a query and its document."""

    query: str = "q"
    document: str = "d"


class Contrast(Task):
    """Pairs, and how likely each query's document is among random others (Fang et al., 2024).

    Its metric is the negative of their contrastive entropy, so that more is better.
    """

    kind: Literal["contrast"]
    files: PairFile
    fields: ContrastFields = ContrastFields()
    metric: Literal["contrastive_log_likelihood"] = "contrastive_log_likelihood"
    negatives: int = Field(256, gt=0, description="Documents of other pairs, drawn by seed.")
    temperature: float = Field(1.0, gt=0, description="Divides the similarities.")


PROBES["contrast"] = Contrast


def contrast(subject: Subject, task: Contrast, paths: Mapping[str, Path]) -> Scored:
    """Score how likely each query's document is among others: the contrastive entropy, negated.

    -log(exp(s+ / t) / (exp(s+ / t) + sum over negatives of exp(s- / t))), as Fang et al. (Scaling
    Laws For Dense Retrieval, SIGIR 2024) measure what a model has learnt, where a rank cannot tell.
    The negatives are the same for all queries, so that few documents are embedded; a query's own
    document is none of them.
    """
    pairs = list(read_fields(paths["pairs"], task.fields.query, task.fields.document))
    chosen = [pairs[i] for i in drawn(len(pairs), task, SEED)]
    pool = list(dict.fromkeys(document for _, document in pairs))
    if len(pool) <= task.negatives:
        raise RecordError(
            f"{paths['pairs']}: {len(pool)} documents, of which {task.negatives} others are to be "
            "drawn; give more records, or fewer negatives"
        )
    # One more is drawn, for the queries whose own document is among them.
    rows = np.random.default_rng(SEED).choice(len(pool), task.negatives + 1, replace=False)
    others = [pool[row] for row in rows.tolist()]
    queries, own = [query for query, _ in chosen], [document for _, document in chosen]
    subject = subject.fitted([*own, *others])
    documents = subject.encode([*own, *others], task, "document", heads=["dense"])
    asked = subject.encode(queries, task, "query", heads=["dense"])
    right, wrong = documents[: len(own)], documents[len(own) :]
    right_Q = subject.model.similarity_pairwise(asked, right).astype(np.float64)
    wrong_QN = subject.model.similarity(asked, wrong).astype(np.float64)
    likelihood = np.empty(len(chosen))
    for row, document in enumerate(own):
        left = others.index(document) if document in others else len(others) - 1
        scores = np.append(np.delete(wrong_QN[row], left), right_Q[row]) / task.temperature
        likelihood[row] = scores[-1] - logsumexp(scores)
    mean = float(likelihood.mean())
    metrics = {"contrastive_log_likelihood": mean, "contrastive_entropy": -mean}
    ids = [str(number) for number in range(len(chosen))]
    return Scored(metrics, Sample.of("mean", "query", ids, chosen, {"value": likelihood}))
