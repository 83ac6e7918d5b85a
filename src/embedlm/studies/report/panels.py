"""What a report shows: panels, each with a question, a plot that answers it, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedlm.studies.report.marks import Dot, Point, Series, dots, lines, number, scatter

__all__ = ["Panel", "Table", "pareto", "study_panels"]

NAN = float("nan")


@dataclass(frozen=True)
class Table:
    """Rows behind a plot."""

    head: list[str]
    rows: list[list[str]]
    strong: frozenset[int] = frozenset()
    """Rows that are set in bold."""


@dataclass(frozen=True)
class Panel:
    """One question with its answer."""

    question: str
    answer: str = ""
    """In a sentence or more."""
    plot: str = ""
    """HTML or SVG."""
    legend: str = ""
    """How the plot is read."""
    table: Table | None = None
    commands: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    """Lines of a list below the answer."""


def pareto(points: Iterable[tuple[float, ...]]) -> list[bool]:
    """Tell for each point whether no other is as good in all coordinates and better in one.

    Args:
        points: coordinates of which less is better.
    """
    known = list(points)
    return [
        not any(
            all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in known
        )
        for own in known
    ]


def interval(value: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ends of a score's interval; not a number where it has none."""
    low, high = value.get("interval") or (None, None)
    return (NAN if low is None else float(low)), (NAN if high is None else float(high))


def scored(value: float, ends: tuple[float, float]) -> str:
    """Return a score with its interval, as a table shows it."""
    low, high = ends
    return f"{value:.4f}" if low != low else f"{value:.4f} [{low:.4f}, {high:.4f}]"


# -- studies ----------------------------------------------------------------------------------


def study_panels(found: Mapping[str, Any]) -> list[Panel]:
    """Return the panels of a study's results."""
    panels = [_variants(found)]
    panels += [panel for task in found["tasks"] for panel in _by_task(found, task)]
    panels += [_fit(fit) for fit in found["fits"]]
    cost = _cost(found)
    return panels + ([cost] if cost is not None else [])


def _tones(found: Mapping[str, Any], task: str) -> dict[str, str]:
    """Return how each variant differs on a task from what it is compared with."""
    tones = {found["variants"][0]["label"]: "base"}
    for one in found["comparisons"]:
        tones.setdefault(one["against"], "base")
        better = one["tasks"][task]["better"]
        tones[one["variant"]] = {"a": "worse", "b": "better"}.get(better, "")
    return tones


def _metric(found: Mapping[str, Any], task: str) -> str:
    return str(found["tasks"][task]["metric"])


def _variants(found: Mapping[str, Any]) -> Panel:
    """Return the main panel: the verdict, and all variants on all tasks."""
    study, tasks = found["study"], list(found["tasks"])
    best_one, *others = found["verdict"]
    facts = [*others, *([f"The claim: {study['claim']}"] if study.get("claim") else [])]
    by_label = {one["variant"]: one for one in found["comparisons"]}
    many = len(tasks) > 1
    head = ["variant", *(f"{task} ({_metric(found, task)})" for task in tasks)]
    head += [*(["mean"] if many else []), "difference", "p (Holm)", "against"]
    best = max(range(len(found["variants"])), key=lambda i: found["variants"][i]["mean"])
    rows = []
    for one in found["variants"]:
        cells = [one["label"]]
        for task in tasks:
            scores = one["tasks"][task]
            cells.append(scored(scores[_metric(found, task)], interval(scores)))
        cells += [f"{one['mean']:.4f}"] if many else []
        versus = by_label.get(one["label"])
        if versus is None:
            cells += ["", "", ""]
        else:
            low, high = versus["mean_interval"]
            p = ", ".join(f"{row['p_holm']:.4f}" for row in versus["tasks"].values())
            told = f"{versus['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
            cells += [told, p, versus["against"]]
        rows.append(cells)
    table = Table(head, rows, frozenset([best]))
    return Panel(study.get("question") or study["name"], best_one, table=table, facts=facts)


def _by_task(found: Mapping[str, Any], task: str) -> list[Panel]:
    """Return how the variants score on a task: as rows, and over factors that are numbers."""
    metric, told = _metric(found, task), found["tasks"][task]
    tones = _tones(found, task)
    rows, table = [], []
    for one in found["variants"]:
        scores = one["tasks"][task]
        ends = interval(scores)
        rows.append(Dot(one["label"], scores[metric], *ends, tone=tones.get(one["label"], "")))
        table.append([one["label"], scored(scores[metric], ends)])
    units = "queries" if told["unit"] == "query" else f"{told['unit']}s"
    summary = f" {told['summary']}" if told.get("summary") else ""
    answer = (
        f"{metric} with 95 % intervals, of {told['n']:,} {units}.{summary} The intervals are of "
        "single scores: the tests of differences are paired, and find smaller ones."
    )
    legend = (
        "Blue: the reference. Filled: surely better (round) or worse (square). Open: not decided."
    )
    question = f"How does each variant do on {task}?"
    plot, behind = dots(rows, metric), Table(["variant", metric], table)
    panels = [Panel(question, answer, plot, legend, behind)]
    for factor in found["study"]["factors"]:
        drawn = _over(found, task, factor)
        if drawn is not None:
            panels.append(drawn)
    return panels


def _numbers(found: Mapping[str, Any], factor: str) -> list[tuple[str, float, Any]]:
    """Return the series, the place and the variant of each level that has a place."""
    levels = found["study"]["factors"][factor]
    base = found["variants"][0]["levels"]
    out = []
    for one in found["variants"]:
        own = one["levels"]
        if found["study"].get("design") != "grid" and any(
            own[name] != base[name] for name in own if name != factor
        ):
            continue
        name = own[factor]
        place = levels[name].get("x")
        others = ", ".join(own[key] for key in own if key != factor)
        group = others if found["study"].get("design") == "grid" else ""
        if place is None:
            try:
                place = float(name)
            except ValueError:
                continue
        else:
            group = name.rsplit(" ", 1)[0] if " " in name else group
        out.append((group, float(place), one))
    return out


def _over(found: Mapping[str, Any], task: str, factor: str) -> Panel | None:
    """Return a task's scores over a factor; None where fewer than three levels are numbers."""
    placed = _numbers(found, factor)
    if len({place for _, place, _ in placed}) < 3:
        return None
    metric = _metric(found, task)
    groups: dict[str, list[tuple[float, Any]]] = {}
    for group, place, one in placed:
        groups.setdefault(group, []).append((place, one))
    series, table = [], []
    for group, own in groups.items():
        own.sort(key=lambda entry: entry[0])
        points, low, high = [], [], []
        for place, one in own:
            scores = one["tasks"][task]
            ends = interval(scores)
            points.append(Point(place, scores[metric], one["label"]))
            low.append(ends[0])
            high.append(ends[1])
            table.append([group, number(place), scored(scores[metric], ends)])
        bands = (
            (low, high) if all(v == v for v in (*low, *high)) and len(points) > 1 else (None, None)
        )
        series.append(Series(group, points, *bands))
    question = f"How does {task} change with {factor}?"
    plot = lines(series, factor, metric)
    legend = "The bands are 95 % intervals of the scores."
    return Panel(question, "", plot, legend, Table(["", factor, metric], table))


def _fit(fit: Mapping[str, Any]) -> Panel:
    """Return a power law with its points and its band."""
    places = [Point(x, y) for x, y in zip(fit["places"], fit["middle"], strict=True)]
    law = Series("fitted law", places, fit["low"], fit["high"], marks=False)
    points = [Point(x, y) for x, y in zip(fit["x"], fit["y"], strict=True)]
    measured = Series("measured", points, joined=False)
    low, high = fit["exponent_interval"]
    x = fit["factor"] if fit["x_is"] == "level" else "parameters without the embedding table"
    floor = f" + {fit['floor']:.4f}" if fit["floor"] else ""
    answer = (
        f"{fit['loss']} = {fit['c']:.4g} x^{-fit['exponent']:+.3f}{floor}; the exponent is in "
        f"[{-high:+.3f}, {-low:+.3f}], and R² = {fit['r2']:.3f} in logarithms. The band resamples "
        "the task's units; it knows nothing of other seeds of training, nor of another form of law."
    )
    rows = [
        [number(a), f"{b:.4f}", f"{fit['c'] * a ** -fit['exponent'] + fit['floor']:.4f}"]
        for a, b in zip(fit["x"], fit["y"], strict=True)
    ]
    plot = lines([law, measured], x, fit["loss"], log_x=True, log_y=True)
    question = f"By which law does the {fit['loss']} of {fit['task']} fall with {x}?"
    return Panel(question, answer, plot, table=Table([x, fit["loss"], "law"], rows))


def _cost(found: Mapping[str, Any]) -> Panel | None:
    """Return quality over the bytes of a vector; None where all have the same."""
    sized = [one for one in found["variants"] if "bytes" in one["facts"]]
    if len({one["facts"]["bytes"] for one in sized}) < 2:
        return None
    front = pareto((one["facts"]["bytes"], -one["mean"]) for one in sized)
    points = [
        Point(one["facts"]["bytes"], one["mean"], one["label"], best)
        for one, best in zip(sized, front, strict=True)
    ]
    rows = [
        [one["label"], number(one["facts"]["bytes"]), f"{one['mean']:.4f}", "yes" if best else ""]
        for one, best in zip(sized, front, strict=True)
    ]
    table = Table(["variant", "bytes", "score", "on the front"], rows)
    plot = scatter(points, "bytes of a vector", "score")
    answer = "No other variant is both smaller and better than those on the line."
    return Panel("What is a byte of a vector worth?", answer, plot, table=table)
