"""The function that scores each kind of task; a kind is a line here and one in `suite.KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embedlm.evaluation.label_tasks import classification, clustering
from embedlm.evaluation.pair_tasks import bitext, pair_classification, similarity
from embedlm.evaluation.ranking_tasks import reranking, retrieval
from embedlm.evaluation.subject import Scored, Subject
from embedlm.evaluation.suite import Task

__all__ = ["SCORE", "score_task"]

SCORE: dict[str, Callable[[Subject, Any, Mapping[str, Path]], Scored]] = {
    "sts": similarity,
    "pair": pair_classification,
    "bitext": bitext,
    "retrieval": retrieval,
    "rerank": reranking,
    "classification": classification,
    "clustering": clustering,
}


def score_task(subject: Subject, task: Task, paths: Mapping[str, Path]) -> Scored:
    """Score a model on a task whose files are there."""
    return SCORE[task.kind](subject, task, paths)
