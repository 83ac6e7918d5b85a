"""The panels of evaluate's result files: the leaderboard, the tasks, what quality costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError
from embedlm.evaluation.comparison import ALPHA, compare
from embedlm.evaluation.results import Result
from embedlm.evaluation.sample import BIASED, uncertainty
from embedlm.evaluation.suite import KINDS as SUITE_KINDS
from embedlm.studies.report.marks import Dot, Point, dots, number, scatter
from embedlm.studies.report.panels import Panel, Table, pareto, scored

__all__ = ["Model", "result_panels"]

_QUESTIONS = {
    "sts": "How well do similarities agree with people?",
    "retrieval": "How well are documents found?",
    "rerank": "How well are candidates ordered?",
    "classification": "How well can labels be learnt from few examples?",
    "clustering": "How well do clusters agree with labels?",
    "pair": "How well are pairs told apart?",
    "bitext": "How well are translations found?",
    "contrast": "How likely are right documents among others?",
    "association": "Bias: which groups do words of judgement stand nearer to?",
    "minimal_pairs": "Bias: which sentence of a pair is preferred?",
    "coreference": "Bias: do occupations lean to a gender?",
    "exposure": "Bias: whose documents are shown?",
    "position": "Bias: does what stands first count more?",
    "length": "Bias: do long documents rank higher?",
    "debiasing": "What does erasing a group cost?",
    "robustness": "Robustness: what do changed queries lose?",
    "worst_case": "Robustness: what does the worst small change lose?",
    "attack": "Robustness: how often do planted documents come up?",
    "instructions": "Robustness: how much depends on the instruction's words?",
    "negation": "Robustness: is a negation noticed?",
    "needle": "How much of a long text is found?",
    "speed": "How fast is it?",
    "forms": "What do shorter vectors and smaller numbers lose?",
}

_RANKED = (*SUITE_KINDS, "needle")
"""Kinds whose metric is quality from 0 to 1, so that a mean over tasks has a meaning."""


@dataclass(frozen=True)
class Model:
    """One model's results."""

    name: str
    results: list[Result]

    def of(self, task: str) -> Result:
        """Return the result of a task."""
        return next(result for result in self.results if result.task == task)

    def on(self, tasks: Sequence[str]) -> list[Result]:
        """Return the results of some tasks."""
        return [result for result in self.results if result.task in tasks]


def result_panels(models: Sequence[Model]) -> list[Panel]:
    """Return the panels of result files.

    Raises:
        InputError: two models of one name, or no common task.
    """
    names = [model.name for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two results are called {twice!r}; give files of other names")
    common = [r.task for r in models[0].results if all(_has(m, r.task) for m in models)]
    if not common:
        raise InputError(
            f"the results of {', '.join(names)} have no task in common; evaluate all models on one "
            "suite"
        )
    ranked = [task for task in common if models[0].of(task).notes.get("kind") in _RANKED]
    panels = [*([_leaderboard(models, ranked)] if ranked else []), _tasks(models)]
    if len(models) > 2 and ranked:
        panels.append(_cost(models, ranked))
    kinds = dict.fromkeys(r.notes.get("kind", "") for m in models for r in m.results)
    return panels + [_kind(models, kind) for kind in kinds]


def _has(model: Model, task: str) -> bool:
    return any(result.task == task for result in model.results)


def _mean(model: Model, tasks: Sequence[str]) -> tuple[float, float, float]:
    """Return the mean score over tasks with its interval, by resampling each task's units."""
    drawn: list[npt.NDArray[np.float64]] = []
    for task in tasks:
        result = model.of(task)
        sample = result.sample
        if sample is None:
            return float(np.mean([model.of(t).score for t in tasks])), float("nan"), float("nan")
        sure = uncertainty(sample.rows(), len(sample), biased=sample.statistic in BIASED)
        spread = sure.resamples.replicates - sure.resamples.estimate
        # Units that share something are less sure than the resamples tell.
        plain = float(spread.std()) or 1.0
        drawn.append(result.score + spread * max(result.error / plain, 1.0))
    mean = float(np.mean([model.of(task).score for task in tasks]))
    low, high = np.quantile(np.mean(drawn, axis=0), [ALPHA / 2, 1 - ALPHA / 2])
    return mean, float(low), float(high)


def _leaderboard(models: Sequence[Model], tasks: Sequence[str]) -> Panel:
    """Return models by their mean score, and how each differs from the best."""
    means = {model.name: _mean(model, tasks) for model in models}
    order = sorted(models, key=lambda model: -means[model.name][0])
    best = order[0]
    rows, table = [], []
    for rank, model in enumerate(order, 1):
        mean, low, high = means[model.name]
        told, tone = "", "base"
        if model is not best:
            found = compare(best.on(tasks), model.on(tasks), (best.name, model.name))
            d_low, d_high = found.mean_interval
            sure = d_high < 0
            tone = "worse" if sure else ""
            told = f"{found.mean:+.4f} [{d_low:+.4f}, {d_high:+.4f}]"
        rows.append(Dot(model.name, mean, low, high, tone=tone))
        table.append([str(rank), model.name, scored(mean, (low, high)), told])
    apart = sum(row.tone == "worse" for row in rows)
    answer = (
        f"The mean main metric of {len(tasks)} task{'s' * (len(tasks) > 1)} that all models have "
        f"({', '.join(tasks)}), with 95 % intervals. "
        + (
            f"{apart} of {len(models) - 1} others are surely below {best.name}. "
            * (len(models) > 1)
        )
        + "The intervals are of these tasks; they say nothing of others."
    )
    head = ["rank", "model", "mean", f"difference from {best.name}"]
    return Panel("Which model is best?", answer, dots(rows, "mean"), table=Table(head, table))


def _tasks(models: Sequence[Model]) -> Panel:
    """Return a table of all tasks."""
    names = list(dict.fromkeys(r.task for model in models for r in model.results))
    rows = []
    for task in names:
        own = next(model.of(task) for model in models if _has(model, task))
        cells = [task, own.metric, f"{own.count:,}"]
        for model in models:
            there = _has(model, task)
            found = model.of(task) if there else None
            cells.append("" if found is None else scored(found.score, found.interval))
        rows.append(cells)
    head = ["task", "metric", "n", *(model.name for model in models)]
    answer = "Main metrics with 95 % intervals; n is the number of queries, pairs or texts."
    table = Table(head, rows)
    return Panel("How does each model do on each task?", answer, table=table)


def _cost(models: Sequence[Model], tasks: Sequence[str]) -> Panel:
    """Return the mean score over the seconds that the tasks took."""
    facts = []
    for model in models:
        seconds = sum(model.of(task).seconds for task in tasks)
        facts.append((model.name, seconds, float(np.mean([model.of(t).score for t in tasks]))))
    front = pareto((seconds, -mean) for _, seconds, mean in facts)
    points = [
        Point(seconds, mean, name, best)
        for (name, seconds, mean), best in zip(facts, front, strict=True)
    ]
    rows = [
        [name, f"{seconds:.1f}", f"{mean:.4f}", "yes" if best else ""]
        for (name, seconds, mean), best in zip(facts, front, strict=True)
    ]
    answer = (
        "Seconds that the tasks took, on the machine where each was scored. No other model is both "
        "faster and better than those on the line."
    )
    plot = scatter(points, "seconds", "mean score")
    table = Table(["model", "seconds", "mean", "on the front"], rows)
    return Panel("What does quality cost?", answer, plot, table=table)


def _kind(models: Sequence[Model], kind: str) -> Panel:
    """Return the tasks of a kind as rows."""
    rows, table = [], []
    for task in dict.fromkeys(r.task for m in models for r in m.results if _is(r, kind)):
        for model in models:
            if _has(model, task):
                result = model.of(task)
                label = f"{task} · {model.name}" if len(models) > 1 else task
                rows.append(Dot(label, result.score, *result.interval, tone="base"))
                facts = f"{number(result.seconds)} s"
                table.append([task, model.name, result.metric, _told(result), facts])
    metrics = dict.fromkeys(row[2] for row in table)
    question = _QUESTIONS.get(kind, f"How good is {kind}?")
    head = ["task", "model", "metric", "score", "time"]
    answer = f"Metric: {', '.join(metrics)}, with 95 % intervals."
    return Panel(question, answer, dots(rows, ", ".join(metrics)), table=Table(head, table))


def _is(result: Result, kind: str) -> bool:
    return bool(result.notes.get("kind", "") == kind)


def _told(result: Result) -> str:
    return scored(result.score, result.interval)
