"""The plot of layers: one SVG that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from embedlm.studies.layer_scores import LayerScore, best

__all__ = ["plot"]

WIDTH, HEIGHT = 560, 300
"""Of a task's panel."""
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 64, 44
COLOURS = ("#4c6fd8", "#c2542d", "#3a9a6a", "#8a5bb5")
"""Told apart on white and on black, and by most who see few colours."""
STYLE = (
    "text{font:13px sans-serif;fill:#3c4043}.grid{stroke:#8884;stroke-width:1}"
    "@media(prefers-color-scheme:dark){text{fill:#d5d8e4}}"
)


def plot(scores: Sequence[LayerScore], title: str) -> str:
    """Return an SVG with a panel for each task, a line for each pooling and its intervals.

    Args:
        scores: of all layers.
        title: says which model they are of.
    """
    tasks = list(dict.fromkeys(score.task for score in scores))
    poolings = list(dict.fromkeys(score.reading.pooling for score in scores))
    width, height = WIDTH * len(tasks), HEIGHT + 28
    told = "; ".join(_told(best(scores, task)) for task in tasks)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"{title}: {told}")}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
    ]
    for place, task in enumerate(tasks):
        own = [score for score in scores if score.task == task]
        inner = _panel(own, task, poolings)
        parts.append(f'<g transform="translate({WIDTH * place} 0)">{inner}</g>')
    parts.append(_legend(poolings))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _told(score: LayerScore) -> str:
    reading = score.reading
    return f"{score.task} is best at layer {reading.layer} by {reading.pooling}"


def _panel(scores: Sequence[LayerScore], task: str, poolings: Sequence[str]) -> str:
    low, high, ticks = _range(scores)
    last = max(score.reading.layer for score in scores)
    first = min(score.reading.layer for score in scores)

    def x(layer: float) -> float:
        share = (layer - first) / max(1, last - first)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    metric = scores[0].result.metric
    parts = [f'<text x="{LEFT}" y="46" font-weight="bold">{escape(task)}, {escape(metric)}</text>']
    for tick in ticks:
        parts.append(
            f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:.2g}</text>'
        )
    for layer in sorted({round(first + (last - first) * i / 6) for i in range(7)}):
        parts.append(
            f'<text x="{x(layer)}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{layer}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">layer</text>')
    for pooling, colour in zip(poolings, _colours(len(poolings)), strict=True):
        line = [score for score in scores if score.reading.pooling == pooling]
        line.sort(key=lambda score: score.reading.layer)
        upper = [(x(s.reading.layer), y(s.result.interval[1])) for s in line]
        lower = [(x(s.reading.layer), y(s.result.interval[0])) for s in line]
        centre = [(x(s.reading.layer), y(s.result.score)) for s in line]
        parts.append(f'<polygon points="{_points([*upper, *lower[::-1]])}" fill="{colour}22"/>')
        parts.append(
            f'<polyline points="{_points(centre)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    top = best(scores, task)
    colour = dict(zip(poolings, _colours(len(poolings)), strict=True))[top.reading.pooling]
    at = x(top.reading.layer), y(top.result.score)
    parts.append(f'<circle cx="{at[0]}" cy="{at[1]}" r="4.5" fill="{colour}"/>')
    parts.append(
        f'<text x="{at[0]}" y="{at[1] - 12}" text-anchor="middle" font-weight="bold">'
        f"{top.result.score:.3f}</text>"
    )
    return "".join(parts)


def _range(scores: Sequence[LayerScore]) -> tuple[float, float, list[float]]:
    """Return the ends of the axis of scores, and where it is marked."""
    ends = [end for score in scores for end in score.result.interval]
    low, high = min(ends), max(ends)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s <= 7 or s == 0.5)
    first, last = int(np.floor(low / step)), int(np.ceil(high / step))
    last = max(last, first + 1)
    return first * step, last * step, [round(i * step, 2) for i in range(first, last + 1)]


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _legend(poolings: Sequence[str]) -> str:
    parts, left = [], LEFT
    for pooling, colour in zip(poolings, _colours(len(poolings)), strict=True):
        parts.append(
            f'<path d="M{left} 16h22" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{left + 28}" y="20">{escape(pooling)}</text>'
        )
        left += 50 + 8 * len(pooling)
    return "".join(parts)
