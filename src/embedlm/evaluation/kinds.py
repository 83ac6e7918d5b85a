"""The function that scores each kind of task.

A kind is a line here and one in `suite.KINDS` or `probes.KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from embedlm.evaluation.association import association
from embedlm.evaluation.attacks import attack
from embedlm.evaluation.contrast import contrast
from embedlm.evaluation.debiasing import debiasing
from embedlm.evaluation.efficiency import forms, speed
from embedlm.evaluation.exposure import exposure, length_bias, position_bias
from embedlm.evaluation.label_tasks import classification, clustering
from embedlm.evaluation.minimal_pairs import coreference, minimal_pairs
from embedlm.evaluation.needles import needle
from embedlm.evaluation.pair_tasks import bitext, pair_classification, similarity
from embedlm.evaluation.ranking_tasks import reranking, retrieval
from embedlm.evaluation.robustness import instructions, negation, robustness, worst_case
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
    "association": association,
    "minimal_pairs": minimal_pairs,
    "coreference": coreference,
    "exposure": exposure,
    "position": position_bias,
    "length": length_bias,
    "debiasing": debiasing,
    "robustness": robustness,
    "worst_case": worst_case,
    "attack": attack,
    "instructions": instructions,
    "negation": negation,
    "needle": needle,
    "speed": speed,
    "forms": forms,
    "contrast": contrast,
}


def score_task(subject: Subject, task: Task, paths: Mapping[str, Path]) -> Scored:
    """Score a model on a task whose files are there."""
    return SCORE[task.kind](subject, task, paths)
