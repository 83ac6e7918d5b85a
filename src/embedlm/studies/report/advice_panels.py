"""The panels of advice: what to take, and what each candidate costs and gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedlm.studies.report.marks import Dot, Point, dots, number, scatter
from embedlm.studies.report.panels import Panel, Table, interval, pareto, scored

__all__ = ["advice_panels"]

_COSTS = {
    "bytes": ("What is a byte of a document worth?", "bytes of a document"),
    "latency_ms": ("What does a faster answer cost?", "milliseconds of a query"),
}
_SHOWN = 12


def advice_panels(found: Mapping[str, Any]) -> list[Panel]:
    """Return the panels of advice."""
    return [_recommendation(found), _best(found), *(_cost(found, name) for name in _COSTS)]


def _recommendation(found: Mapping[str, Any]) -> Panel:
    corpus, advice, metric = found["corpus"], found["recommendation"], found["metric"]
    limits = {
        "latency_ms": "{} ms a query",
        "memory_mb": "{} MB of memory",
        "bytes": "{} bytes a document",
    }
    budget = [
        text.format(number(found["budget"][name]))
        for name, text in limits.items()
        if found["budget"][name] is not None
    ]
    facts = [
        f"Corpus: {corpus['name']}, {corpus['documents']:,} documents.",
        f"Queries: {corpus['queries']:,}, from {corpus['source']}.",
        f"Budget: {', '.join(budget) or 'none'}.",
    ]
    if corpus["source"].startswith("titles"):
        facts.append(
            "Titles and headings share words with their texts more than queries do, which favours "
            "bm25 and hybrid search; give queries of your own (--queries) to decide between these."
        )
    rows = [
        [
            one["label"],
            scored(one[metric], interval(one)),
            number(one["latency_ms"]),
            number(one["memory_mb"]),
            number(one["bytes"]),
            "yes" if one["fits"] else "no",
            "yes" if one["front"] else "",
        ]
        for one in found["candidates"]
    ]
    head = ["candidate", metric, "ms", "MB", "bytes", "fits", "on the front"]
    strong = [i for i, one in enumerate(found["candidates"]) if one["label"] == advice["label"]]
    table = Table(head, rows, frozenset(strong))
    answer = f"{advice['label']}. {advice['why']}"
    return Panel(
        "Which should I take?", answer, table=table, commands=advice["commands"], facts=facts
    )


def _best(found: Mapping[str, Any]) -> Panel:
    metric = found["metric"]
    ordered = sorted(found["candidates"], key=lambda one: -one[metric])[:_SHOWN]
    rows, table = [], []
    for one in ordered:
        p = one["p_equal_to_best"]
        worse = p is not None and p <= 0.05
        tone = "base" if one["label"] == found["recommendation"]["label"] else ""
        rows.append(Dot(one["label"], one[metric], *interval(one), tone=tone or "worse" * worse))
        told = "" if p is None else f"{p:.4f}"
        table.append([one["label"], scored(one[metric], interval(one)), told])
    answer = f"The {len(rows)} best by {metric}, with 95 % intervals."
    legend = (
        "Square: surely below the best that fits the budget (paired, Holm's p up to 0.05); blue: "
        "the one to take."
    )
    head = ["candidate", metric, "p of being as good as the best"]
    return Panel("Which is best?", answer, dots(rows, metric), legend, Table(head, table))


def _cost(found: Mapping[str, Any], name: str) -> Panel:
    metric = found["metric"]
    question, unit = _COSTS[name]
    every = found["candidates"]
    front = pareto((one[name], -one[metric]) for one in every)
    points = [
        Point(one[name], one[metric], one["label"], on)
        for one, on in zip(every, front, strict=True)
    ]
    rows = [
        [one["label"], number(one[name]), f"{one[metric]:.4f}"]
        for one, on in sorted(zip(every, front, strict=True), key=lambda pair: pair[0][name])
        if on
    ]
    answer = "No other candidate is both cheaper and better than those on the line."
    table = Table(["on the line", unit, metric], rows)
    return Panel(question, answer, scatter(points, unit, metric), table=table)
