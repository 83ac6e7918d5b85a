"""The plan by which an adaptation tunes: listwise distillation and a little InfoNCE, with LoRA.

InfoNCE alone often lowers models that are good already; the order that a stronger model gives to a
query's passages raises them (CADET, arXiv 2505.19274: KL + 0.1 InfoNCE). An embedder orders all
passages of a batch, a re-ranker the query's own. Without a teacher there is InfoNCE alone, and the
untouched base is kept unless the result is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedlm.adaptation.settings import Settings

__all__ = ["plan_of", "steps_of"]

EPOCHS, MOST_STEPS = 2, 48
"""Without `steps`: so many rounds through the queries, and at most so many steps."""
SCORES = 3
"""Dev scores of a run, the start's apart."""
QUERY_TOKENS = 64
_TEMPERATURE = 0.05
_LOGIT_TEMPERATURE = 1.0
"""Of a re-ranker's logits, whose scale is another than that of cosines."""
_INFO_NCE = 0.1
"""Weight of InfoNCE beside distillation."""


def steps_of(settings: Settings, queries: int) -> int:
    """Return the number of steps."""
    if settings.steps is not None:
        return settings.steps
    return min(math.ceil(EPOCHS * queries / settings.batch), MOST_STEPS)


def plan_of(
    settings: Settings,
    *,
    model: str,
    recipe: dict[str, Any] | None,
    teacher: str | None,
    scored: bool,
    queries: int,
    prompts: Mapping[str, int],
    save_dtype: str,
    data: Path,
) -> dict[str, Any]:
    """Return the plan of a run.

    Args:
        settings: of the run.
        model: the base's folder or hub id.
        recipe: its fields; None: the model's own.
        teacher: the folder or hub id of an embedder that is distilled; None: there is none.
        scored: the records hold a re-ranker's scores, which are distilled.
        queries: number of training records.
        prompts: tokens of the prompt by role.
        save_dtype: numbers of the tuned model's weights.
        data: the folder with train.jsonl and dev.jsonl.
    """
    steps = steps_of(settings, queries)
    stage = _stage(settings, teacher, data, steps, scored=scored)
    limits = {"query": QUERY_TOKENS, "document": settings.chunk_tokens}
    # A long prompt leaves room for half as much text at least.
    stage["max_length"] = {r: max(n, prompts[r] + n // 2) for r, n in limits.items()}
    return {
        "name": "adapt",
        "model": model,
        **({} if recipe is None else {"recipe": recipe}),
        "stages": [stage],
        "dev": {"source": str(data / "dev.jsonl"), "every": max(1, steps // SCORES)},
        "save_dtype": save_dtype,
        "seed": settings.seed,
        "checkpoint_every": max(1, steps // (2 * SCORES)),
        "log_every": max(1, steps // (2 * SCORES)),
    }


def _stage(
    settings: Settings, teacher: str | None, data: Path, steps: int, *, scored: bool
) -> dict[str, Any]:
    """Return the one stage of the plan."""
    stage: dict[str, Any] = {
        "name": "adapt",
        "objective": _objective(teacher, scored=scored),
        "data": [{"source": str(data / "train.jsonl")}],
        "train": settings.train,
        "adapter": {"rank": settings.rank, "alpha": 2 * settings.rank},
        "batching": {
            "size": settings.batch,
            "group_size": settings.negatives + 1,
            "chunk_tokens": 16384,
        },
        "optimizer": {"learning_rate": settings.learning_rate, "steps": steps, "warmup": 0.1},
        "keep": "best",
    }
    if settings.train != "adapter":
        del stage["adapter"]
    return stage


def _objective(teacher: str | None, *, scored: bool) -> list[dict[str, Any]]:
    """Return the losses: those of a teacher and a little InfoNCE, or InfoNCE alone."""
    contrast = {"kind": "info_nce", "temperature": _TEMPERATURE}
    if teacher is not None:
        kind: str = "guide_distill"
        options: dict[str, Any] = {"teacher": teacher, "guide_temperature": _TEMPERATURE}
    elif scored:
        kind, options = "kl_distill", {"form": "cross_entropy", "similarity": "cosine"}
        options["teacher_temperature"] = _LOGIT_TEMPERATURE
    else:
        return [contrast]
    listwise = {"kind": kind, "temperature": _TEMPERATURE, "options": options}
    return [listwise, {**contrast, "weight": _INFO_NCE}]
