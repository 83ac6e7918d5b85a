"""The advice: which candidates no other beats, which to take within a budget, and how."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.errors import InputError
from embedlm.evaluation.results import machine
from embedlm.evaluation.statistics import (
    LEVEL,
    SEED,
    bootstrap,
    detectable,
    holm,
    mean_of,
    sign_flip,
    standard_error,
)
from embedlm.jobs.interrupts import keeping
from embedlm.jobs.names import make_folder
from embedlm.jobs.user_cache import user_cache
from embedlm.loader import load
from embedlm.studies.advise.candidates import METRIC, Candidate, candidates, lexical, vectors_of
from embedlm.studies.advise.corpus import Corpus
from embedlm.studies.advise.named import NamedModel, check_models
from embedlm.studies.advise.using import commands, kept_by_an_index
from embedlm.studies.report.panels import pareto

__all__ = ["Advice", "Budget", "advise"]

ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Budget:
    """What may be spent; None: anything."""

    latency_ms: float | None = None
    """Milliseconds of a query, embedding and search, at most."""
    memory_mb: float | None = None
    """Megabytes of the model's weights and all vectors, at most."""
    bytes: float | None = None
    """Bytes that are kept of a document, at most."""

    def fits(self, candidate: Candidate) -> bool:
        """Tell whether a candidate costs no more."""
        return all(
            most is None or getattr(candidate, name) <= most for name, most in asdict(self).items()
        )


@dataclass(frozen=True)
class Advice:
    """Candidates with their scores and costs, and which of them to take."""

    corpus: dict[str, Any]
    budget: Budget
    candidates: list[dict[str, Any]]
    recommendation: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "schema": 1,
            "kind": "advice",
            "command": list(sys.argv),
            "seed": SEED,
            "machine": machine(),
            "metric": METRIC,
            "corpus": self.corpus,
            "budget": asdict(self.budget),
            "candidates": self.candidates,
            "recommendation": self.recommendation,
        }


def advise(
    corpus: Corpus,
    models: Sequence[str | NamedModel],
    budget: Budget | None = None,
    *,
    path: str = "CORPUS",
    text_field: str = "text",
    work: str | Path | None = None,
    device: Any = None,
    dtype: str = "auto",
    on_candidate: Callable[[Candidate], object] = lambda _: None,
) -> Advice:
    """Try every model in every form on a corpus, and say which to take within a budget.

    Of the candidates that fit, those are good enough whose nDCG@10 is not surely below the best
    one's (paired sign flips with Holm's correction); the one with the fewest bytes among them is
    recommended, and of these the fastest.

    Args:
        corpus: documents, queries and answers.
        models: folders or hub ids; `MODEL@RECIPE` runs one by another recipe. What
            `check_models` gave is not checked again.
        budget: None: any cost.
        path: the corpus, as the commands name it.
        text_field: of its records.
        work: folder of vectors, which are computed once; None: one in the user's cache.
        device: None chooses CUDA, MPS or CPU.
        dtype: as in `embedlm.load`.
        on_candidate: called with each candidate as soon as it is there.

    Raises:
        InputError: no candidate fits the budget.
    """
    budget = budget or Budget()
    folder = Path(work) if work is not None else user_cache() / "advise"
    make_folder(folder, "work folder")
    named = check_models(models)
    words, runs = lexical(corpus)
    found = [words]
    on_candidate(words)
    with keeping(folder.is_dir):
        for one in named:
            opened = load(one.model, one.recipe, device=device, dtype=dtype)
            own = vectors_of(opened, one.name, corpus, folder)
            for candidate in candidates(own, corpus, runs):
                found.append(candidate)
                on_candidate(candidate)
    told = partial(commands, path=path, text_field=text_field, dtype=dtype)
    return _advice(found, corpus, budget, told)


def _advice(
    found: Sequence[Candidate],
    corpus: Corpus,
    budget: Budget,
    told: Callable[[Candidate], list[str]],
) -> Advice:
    fitting = [candidate for candidate in found if budget.fits(candidate)]
    if not fitting:
        cheapest = min(found, key=lambda c: (c.bytes, c.latency_ms))
        raise InputError(
            f"no candidate fits the budget; the smallest is {cheapest.label} with "
            f"{cheapest.latency_ms:.1f} ms, {cheapest.memory_mb:.1f} MB and {cheapest.bytes:.0f} "
            "bytes a document: allow more, or give another model"
        )
    best = max(fitting, key=lambda c: c.score)
    p = dict(zip(map(id, fitting), _p_values(fitting, best), strict=True))
    equal = [c for c in fitting if c is best or p[id(c)] > ALPHA]
    chosen = min(equal, key=lambda c: (c.bytes, c.latency_ms, -c.score))
    front = pareto((c.latency_ms, c.memory_mb, c.bytes, -c.score) for c in found)
    rows = [
        _row(c, on_front, budget.fits(c), p.get(id(c)))
        for c, on_front in zip(found, front, strict=True)
    ]
    differences = np.asarray(best.scores) - np.asarray(chosen.scores)
    why = _why(chosen, best, differences, len(equal), len(fitting)) + kept_by_an_index(chosen)
    return Advice(
        {
            "name": corpus.name,
            "documents": len(corpus.ids),
            "queries": len(corpus.queries),
            "source": corpus.source,
        },
        budget,
        rows,
        {"label": chosen.label, "why": why, "commands": told(chosen)},
    )


def _p_values(fitting: Sequence[Candidate], best: Candidate) -> list[float]:
    """Return for each candidate the corrected p of being as good as the best."""
    raw = [
        1.0 if c is best else sign_flip(np.asarray(best.scores) - np.asarray(c.scores))
        for c in fitting
    ]
    return holm(raw)


def _row(candidate: Candidate, front: bool, fits: bool, p: float | None) -> dict[str, Any]:
    sure = bootstrap(mean_of(candidate.scores), len(candidate.scores))
    plain = {k: v for k, v in asdict(candidate).items() if k != "scores"}
    return {
        **plain,
        METRIC: candidate.score,
        "interval": [sure.low, sure.high],
        "front": front,
        "fits": fits,
        "p_equal_to_best": p,
    }


def _why(chosen: Candidate, best: Candidate, lost: Any, equal: int, fitting: int) -> str:
    if chosen is best:
        return (
            f"It has the best {METRIC} of the {fitting} candidates that fit the budget "
            f"({best.score:.4f}), and no smaller one is as good."
        )
    missed = detectable(standard_error(lost))
    return (
        f"{equal} of the {fitting} candidates that fit the budget are not surely below the best "
        f"({best.label}, {METRIC} {best.score:.4f}); this one is the smallest of them: "
        f"{chosen.score:.4f} with {chosen.bytes:,.0f} bytes a document instead of "
        f"{best.bytes:,.0f}. With these queries a loss of {missed:.3f} would be found in 4 of 5 "
        "cases."
    )
