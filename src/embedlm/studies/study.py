"""Runs a study: every variant on every task, each difference tested, and a verdict on them all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.embedder import Embedder
from embedlm.encode.identity import revision
from embedlm.evaluation.comparison import ALPHA, Difference, differences, mean_difference
from embedlm.evaluation.results import Cache, Result, machine
from embedlm.evaluation.sample import BIASED, uncertainty
from embedlm.evaluation.statistics import LEVEL, SEED
from embedlm.evaluation.suite import Task
from embedlm.evaluation.tasks import Run, data_folder, found_tasks, select
from embedlm.studies.design import Study, Variant, variants
from embedlm.studies.fits import PowerLaw, fit_power_law
from embedlm.studies.one_pass import score_together
from embedlm.studies.opening import Opener
from embedlm.studies.passes import one_pass_serves, pass_groups

__all__ = ["Outcome", "StudyReport", "Versus", "run_study"]

SCHEMA = 1
"""Version of the files of studies; raised where a field changes its meaning."""


@dataclass(frozen=True)
class Outcome:
    """What came of a variant."""

    variant: Variant
    results: list[Result]
    facts: dict[str, float]
    """parameters (without the embedding table), dim, bytes of a dense vector, seconds."""
    model: dict[str, Any]

    @property
    def mean(self) -> float:
        """The mean score over tasks."""
        return float(np.mean([result.score for result in self.results]))


@dataclass(frozen=True)
class Versus:
    """How a variant differs from the one that it is compared with, on all tasks."""

    label: str
    against: str
    tasks: list[Difference]
    mean: float
    mean_interval: tuple[float, float]

    def counts(self) -> tuple[int, int]:
        """Return on how many tasks it is surely better, and worse."""
        return sum(r.better == "b" for r in self.tasks), sum(r.better == "a" for r in self.tasks)


@dataclass(frozen=True)
class StudyReport:
    """A finished study."""

    study: Study
    outcomes: list[Outcome]
    versus: list[Versus]
    fits: list[PowerLaw]
    verdict: list[str]
    tasks: dict[str, dict[str, Any]]
    """Summary, metric and number of units of each task."""
    command: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "schema": SCHEMA,
            "kind": "study",
            "command": self.command,
            "seed": SEED,
            "level": LEVEL,
            "machine": machine(),
            "study": json.loads(self.study.model_dump_json(exclude_defaults=True)),
            "tasks": self.tasks,
            "variants": [_outcome_dict(outcome) for outcome in self.outcomes],
            "comparisons": [_versus_dict(versus) for versus in self.versus],
            "fits": [asdict(fit) for fit in self.fits],
            "verdict": self.verdict,
        }


def _outcome_dict(outcome: Outcome) -> dict[str, Any]:
    variant = outcome.variant
    return {
        "label": variant.label,
        "levels": variant.levels,
        "settings": variant.settings.model_dump(mode="json", exclude_defaults=True),
        "model": outcome.model,
        "facts": outcome.facts,
        "mean": outcome.mean,
        "tasks": {
            result.task: {**result.scores(), "seconds": result.seconds}
            for result in outcome.results
        },
    }


def _versus_dict(versus: Versus) -> dict[str, Any]:
    rows = [{k: v for k, v in asdict(row).items() if k not in ("a", "b")} for row in versus.tasks]
    return {
        "variant": versus.label,
        "against": versus.against,
        "mean": versus.mean,
        "mean_interval": list(versus.mean_interval),
        "tasks": {row.pop("task"): row for row in rows},
    }


def run_study(
    study: Study | str | Path,
    model: str | None = None,
    *,
    tasks: Mapping[str, Task] | None = None,
    data: str | Path | None = None,
    words: int | None = None,
    work: str | Path | None = None,
    cache: str | Path | Cache | None = None,
    restart: bool = False,
    skip_missing: bool = False,
    device: Any = None,
    dtype: Any = "auto",
    on_result: Callable[[Variant, Result], object] = lambda *_: None,
) -> StudyReport:
    """Score every variant of a study on every task, and say which differ and how surely.

    Args:
        study: its name, a .yaml file, or a `Study`.
        model: a folder or hub id instead of the study's; None takes the study's, else the built-in.
        tasks: instead of the study's.
        data: the folder that holds the data sets; None takes $EMBEDLM_DATA.
        words: of a document that are embedded; None takes the study's.
        work: folder of the models that the study trains; None: one in the user's cache.
        cache: a folder of finished results, which are not computed again; None keeps none.
        restart: compute again what the cache holds.
        skip_missing: leave out tasks whose files are not there.
        device: None chooses CUDA, MPS or CPU.
        dtype: as in `embedlm.load`.
        on_result: called with each variant and result as soon as it is there.

    Raises:
        InputError: an unknown study or task, or files that do not exist.
        RecipeError: a study, recipe or plan that is not valid.
    """
    design = study if isinstance(study, Study) else Study.load(study)
    chosen = tasks or design.own_tasks() or select(None, design.suite)
    folder = data_folder(data, chosen)
    paths, _ = found_tasks(chosen, folder, skip_missing=skip_missing)
    kept = cache if isinstance(cache, Cache) or cache is None else Cache(Path(cache))
    opener = Opener(
        design, folder, model or design.model, None if work is None else Path(work), device, dtype
    )
    scoring = _Scoring(chosen, paths, words or design.words, kept, restart, on_result)
    outcomes = scoring.outcomes(list(variants(design)), opener)
    versus = _compared(design, outcomes)
    fits = [_fitted(design, fit, outcomes) for fit in design.fits]
    told = {
        result.task: {
            "summary": chosen[result.task].summary,
            "metric": result.metric,
            "n": result.count,
            "unit": "" if result.sample is None else result.sample.unit,
        }
        for result in outcomes[0].results
    }
    verdict = _verdict(outcomes, versus)
    return StudyReport(design, outcomes, versus, fits, verdict, told, list(sys.argv))


@dataclass
class _Scoring:
    """How every variant is scored."""

    tasks: Mapping[str, Task]
    paths: Mapping[str, Mapping[str, Path]]
    words: int | None
    cache: Cache | None
    restart: bool

    on_result: Callable[[Variant, Result], object]

    def outcomes(self, chosen: Sequence[Variant], opener: Opener) -> list[Outcome]:
        """Score all variants on all tasks; those that read the same states share a pass."""
        found: dict[str, Outcome] = {}
        for group in pass_groups(chosen):
            embedders = [opener.open(variant.settings) for variant in group]
            if one_pass_serves(embedders):
                made = self._together(embedders, group)
            else:
                made = [self._outcome(*both) for both in zip(embedders, group, strict=True)]
            found |= {outcome.variant.label: outcome for outcome in made}
        return [found[variant.label] for variant in chosen]

    def _outcome(self, embedder: Embedder, variant: Variant) -> Outcome:
        """Score a variant's model on all tasks."""
        options = variant.settings.encode
        run = Run(embedder, self.tasks, self.paths, self.words, options, self.cache, self.restart)
        results = []
        for result in run.results():
            results.append(result)
            self.on_result(variant, result)
        return _outcome_of(embedder, variant, results, sum(one.seconds for one in results))

    def _together(self, embedders: Sequence[Embedder], group: Sequence[Variant]) -> list[Outcome]:
        """Score variants from one pass over each text; each has its share of the seconds."""
        results: list[list[Result]] = [[] for _ in group]
        scores = score_together(
            embedders,
            [variant.settings.encode for variant in group],
            self.tasks,
            self.paths,
            words=self.words,
            cache=self.cache,
            restart=self.restart,
        )
        for number, result in scores:
            results[number].append(result)
            self.on_result(group[number], result)
        seconds = sum(one.seconds for each in results for one in each) / len(group)
        return [
            _outcome_of(embedder, variant, own, seconds)
            for embedder, variant, own in zip(embedders, group, results, strict=True)
        ]


def _outcome_of(
    embedder: Embedder, variant: Variant, results: list[Result], seconds: float
) -> Outcome:
    name = {"name": embedder.name, "recipe": embedder.recipe.name}
    facts = _facts(embedder, variant.settings.encode, seconds)
    return Outcome(variant, results, facts, {**name, "revision": revision(embedder)})


def _facts(embedder: Embedder, options: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Return what a variant costs."""
    network: Any = embedder.backbone.network
    table = network.get_input_embeddings().weight
    weights = {id(weight): weight for weight in network.parameters()}
    count = sum(weight.numel() for key, weight in weights.items() if key != id(table))
    facts = {"parameters": float(count), "seconds": seconds}
    if any(head.kind == "dense" for head in embedder.recipe.heads):
        form = {k: v for k, v in options.items() if k in ("dim", "precision", "normalize")}
        if form.get("precision") in ("int8", "uint8"):  # whose ranges need many texts
            form["precision"] = "float32"
        vector = embedder.encode(["size"], heads=["dense"], **form)
        quarter = 4 if options.get("precision") in ("int8", "uint8") else 1
        facts |= {"dim": float(options.get("dim") or embedder.dim)}
        facts |= {"bytes": float(vector.nbytes / quarter)}
    return facts


# -- what differs -----------------------------------------------------------------------------


def _pairs(study: Study, outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """Yield which variant is compared with which: the reference first."""
    if study.within is None:
        for outcome in outcomes[1:]:
            yield outcomes[0], outcome
        return
    factor = study.within
    reference = outcomes[0].variant.levels[factor]
    by_levels = {tuple(outcome.variant.levels.items()): outcome for outcome in outcomes}
    for outcome in outcomes:
        levels = outcome.variant.levels
        if levels[factor] != reference:
            yield by_levels[tuple({**levels, factor: reference}.items())], outcome


def _compared(study: Study, outcomes: Sequence[Outcome]) -> list[Versus]:
    """Test each variant against its reference; Holm's correction is for all tests of the study."""
    pairs = list(_pairs(study, outcomes))
    if not pairs:
        return []
    each = [(a, b) for one, two in pairs for a, b in zip(one.results, two.results, strict=True)]
    rows, replicates = differences(each)
    found, count = [], len(outcomes[0].results)
    for number, (one, two) in enumerate(pairs):
        part = slice(number * count, (number + 1) * count)
        mean, interval = mean_difference(rows[part], replicates[part])
        labels = two.variant.label, one.variant.label
        found.append(Versus(*labels, rows[part], mean, interval))
    return found


def _verdict(outcomes: Sequence[Outcome], versus: Sequence[Versus]) -> list[str]:
    """Return sentences: how each variant differs, and which has the best mean."""
    best = max(outcomes, key=lambda outcome: outcome.mean)
    count = len(best.results)
    over = "" if count == 1 else f", the mean of {count} tasks"
    metrics = sorted({result.metric for result in best.results})
    mixed = len(metrics) > 1 and any(name.endswith("likelihood") for name in metrics)  # nats
    lines = [f"Best: {best.variant.label} ({best.mean:.4f}{over})."]
    if mixed:
        lines = [f"The tasks have no common scale ({', '.join(metrics)}), so no mean is taken."]
    for row in versus:
        better, worse = row.counts()
        low, high = row.mean_interval
        p = min(one.p_holm for one in row.tasks)
        told = f"{row.mean:+.4f} [{low:+.4f}, {high:+.4f}], p {p:.4f}"
        told = f"least p {p:.4f}" if mixed else told
        if better and not worse:
            said = f"better than {row.against}"
        elif worse and not better:
            said = f"worse than {row.against}"
        elif better:
            said = f"better than {row.against} on some tasks and worse on others"
        else:
            missed = max(one.detectable for one in row.tasks)
            said = f"not decided against {row.against} (a difference of {missed:.3f} would be found"
            lines.append(f"{row.label} is {said} in 4 of 5 cases): {told}.")
            continue
        on = "" if count == 1 else f" on {better or worse} of {count} tasks"
        lines.append(f"{row.label} is {said}{on}: {told}.")
    lines.append(
        f"Differences are paired, with {LEVEL:.0%} intervals; p is Holm's for all "
        f"{sum(len(row.tasks) for row in versus)} tests, and at most {ALPHA:.2f} where one is sure."
    )
    return lines


# -- power laws -------------------------------------------------------------------------------


def _fitted(study: Study, fit: Any, outcomes: Sequence[Outcome]) -> PowerLaw:
    """Return the power law through the levels of a factor, all others at their baseline."""
    base = outcomes[0].variant.levels
    points = []
    for outcome in outcomes:
        levels = outcome.variant.levels
        if any(levels[name] != base[name] for name in levels if name != fit.factor):
            continue
        x = (
            outcome.facts["parameters"]
            if fit.x == "parameters"
            else outcome.variant.number(fit.factor, study)
        )
        result = next((one for one in outcome.results if one.task == fit.task), None)
        if x is not None and x > 0 and result is not None and result.sample is not None:
            points.append((x, result))
    points.sort(key=lambda point: point[0])
    losses, drawn = [], []
    for _, result in points:
        sample = result.sample
        assert sample is not None
        sure = uncertainty(sample.rows(), len(sample), biased=sample.statistic in BIASED)
        negated = result.metric == "contrastive_log_likelihood"
        losses.append(-result.score if negated else 1 - result.score)
        drawn.append(-sure.resamples.replicates if negated else 1 - sure.resamples.replicates)
    loss = "contrastive entropy" if points and points[0][1].metric.endswith("likelihood") else None
    name = loss or (f"1 - {points[0][1].metric}" if points else "loss")
    return fit_power_law(
        [x for x, _ in points],
        losses,
        drawn,
        factor=fit.factor,
        task=fit.task,
        x_is=fit.x,
        loss=name,
    )
