"""The marks that plots are made of: each plot is HTML or SVG in a string, without a library.

Colours are the page's CSS variables, so that a plot follows its light and dark schemes. Rows of
dots are HTML, which wraps on a phone; the others are SVG in a small view box, so that text stays
legible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Dot", "Point", "Series", "dots", "heat", "lines", "number", "scatter"]

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 46
COLOURS = 7
"""Hues of the page; further series take them again, with another shape."""
_SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Dot:
    """A row: a score with its interval."""

    label: str
    value: float
    low: float
    high: float
    note: str = ""
    """Told beside the value."""
    tone: str = ""
    """better, worse, base or empty: how the mark is drawn."""


@dataclass(frozen=True)
class Point:
    """A place in a plane."""

    x: float
    y: float
    label: str = ""
    front: bool = False
    """Whether it is on the front."""


@dataclass(frozen=True)
class Series:
    """Points that belong together, joined by a line or within a band."""

    name: str
    points: list[Point]
    low: list[float] | None = None
    high: list[float] | None = None
    marks: bool = True
    joined: bool = True


def number(value: float) -> str:
    """Return a number as a reader needs it: four digits, and thousands with a letter."""
    size = abs(value)
    if not math.isfinite(value):
        return "–"
    for letter, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= unit * (10 if letter == "k" else 1):
            return f"{value / unit:.3g}{letter}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4f}" if size < 1 else f"{value:.3g}"


def dots(rows: Sequence[Dot], unit: str) -> str:
    """Return rows with a mark and its interval on one scale.

    Args:
        rows: in the order in which they stand.
        unit: what the numbers are.
    """
    ends = [end for row in rows for end in (row.low, row.high, row.value) if math.isfinite(end)]
    low, high = min(ends), max(ends)
    space = (high - low) * 0.06 or 0.01
    low, high = low - space, high + space

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    ticks = _ticks(low, high)
    scale = "".join(f'<span style="left:{at(t)}">{_tick(t)}</span>' for t in ticks)
    grid = "".join(f'<i class="grid" style="left:{at(t)}"></i>' for t in ticks)
    parts = [f'<div class="dots" role="group" aria-label="{escape(unit)} of {len(rows)} rows">']
    for row in rows:
        told = f"{row.label}: {number(row.value)}"
        whisker = ""
        if math.isfinite(row.low) and math.isfinite(row.high):
            told += f" [{number(row.low)}, {number(row.high)}]"
            width = 100 * (row.high - row.low) / (high - low)
            whisker = f'<i class="whisker" style="left:{at(row.low)};width:{width:.2f}%"></i>'
        told += f", {row.note}" if row.note else ""
        parts.append(
            f'<div class="row {row.tone}"><span class="name">{escape(row.label)}</span>'
            f'<span class="track" {_read(told)}>{grid}{whisker}'
            f'<i class="dot" style="left:{at(row.value)}"></i></span>'
            f'<span class="value">{number(row.value)}<small>{escape(row.note)}</small></span></div>'
        )
    parts.append(
        f'<div class="row scale"><span class="name">{escape(unit)}</span>'
        f'<span class="track">{scale}</span><span class="value"></span></div></div>'
    )
    return "".join(parts)


def _read(words: str) -> str:
    """Return what lets a mark be reached by keyboard and told by a screen reader."""
    told = escape(words)
    return f'tabindex="0" role="img" aria-label="{told}" data-tip="{told}"'


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers between two ends."""
    step = (high - low) / count
    size = 10 ** math.floor(math.log10(step))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= step)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Return numbers that are equally far apart on a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [10.0**e * f for e in range(first, last + 1) for f in (1, 2, 5)]
    found = [value for value in found if low <= value <= high]
    tens = [value for value in found if math.log10(value).is_integer()]
    return tens if len(tens) >= 3 else found[:: max(1, len(found) // 5)]


@dataclass(frozen=True)
class _Axis:
    """One axis of a plane: where a number stands on it."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool) -> _Axis:
        low, high = min(values), max(values)
        if log:
            factor = (high / low) ** 0.05 if high > low else 1.5
            return cls(low / factor, high * factor, start, end, log)
        space = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(low - space, high + space, start, end, log)

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        wide = self.log and self.high > 5 * self.low
        return _powers(self.low, self.high) if wide else _ticks(self.low, self.high)


def _is_wide(values: Sequence[float]) -> bool:
    """Tell whether numbers need a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > 15


def lines(
    series: Sequence[Series], x: str, y: str, *, log_x: bool | None = None, log_y: bool = False
) -> str:
    """Return lines over an axis, with their bands.

    Args:
        series: by name.
        x: what the axis is.
        y: what the other is.
        log_x: a logarithmic axis; None: where the numbers are far apart.
        log_y: likewise.
    """
    xs = [point.x for one in series for point in one.points]
    ys = [point.y for one in series for point in one.points]
    ys += [value for one in series for value in (*(one.low or ()), *(one.high or ()))]
    log_x = _is_wide(xs) if log_x is None else log_x
    across = _Axis.over(xs, LEFT, WIDTH - RIGHT, log=log_x)
    up = _Axis.over(ys, HEIGHT - BOTTOM, TOP, log=log_y and min(ys) > 0)
    body = []
    for index, one in enumerate(series):
        if one.low is not None and one.high is not None:
            ends = [*zip(one.points, one.low, strict=True)]
            back = [*zip(one.points, one.high, strict=True)][::-1]
            path = " ".join(f"{across.at(p.x):.1f},{up.at(v):.1f}" for p, v in (*ends, *back))
            body.append(f'<polygon class="band c{index % COLOURS}" points="{path}"/>')
        if one.joined:
            path = " ".join(f"{across.at(p.x):.1f},{up.at(p.y):.1f}" for p in one.points)
            body.append(f'<polyline class="line c{index % COLOURS}" points="{path}"/>')
        if one.marks:
            body += [_mark(point, across, up, index, one.name) for point in one.points]
    named = [(index, one.name) for index, one in enumerate(series) if one.name]
    return _frame(body, across, up, x, y) + _legend(named)


def scatter(points: Sequence[Point], x: str, y: str, *, log_x: bool | None = None) -> str:
    """Return points with names, and the front of those that no other beats.

    Args:
        points: those on the front are joined.
        x: what costs; less is better.
        y: what is gained; more is better.
        log_x: a logarithmic axis; None: where the numbers are far apart.
    """
    xs, ys = [point.x for point in points], [point.y for point in points]
    log_x = _is_wide(xs) if log_x is None else log_x
    across = _Axis.over(xs, LEFT, WIDTH - RIGHT, log=log_x)
    up = _Axis.over(ys, HEIGHT - BOTTOM, TOP, log=False)
    front = sorted((point for point in points if point.front), key=lambda point: point.x)
    path = " ".join(f"{across.at(p.x):.1f},{up.at(p.y):.1f}" for p in front)
    body = [f'<polyline class="line front" points="{path}"/>'] if len(front) > 1 else []
    placed: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: not point.front):
        body.append(_mark(point, across, up, 0 if point.front else 6, ""))
        if point.front:
            body.append(_name(point, across.at(point.x), up.at(point.y), placed))
    return _frame(body, across, up, x, y)


def _name(point: Point, x: float, y: float, placed: list[tuple[float, float]]) -> str:
    """Return a point's name beside it, if no other name is there."""
    if any(abs(x - a) < 110 and abs(y - b) < 13 for a, b in placed):
        return ""
    placed.append((x, y))
    right = x > WIDTH * 0.6
    anchor, shift = ("end", -9) if right else ("start", 9)
    short = point.label if len(point.label) <= 26 else point.label[:25] + "…"
    return _text(x + shift, y + 4, escape(short), anchor, "tag")


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _rule(x1: float, x2: float, y1: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"'
    return f'<line class="grid" {ends}/>'


def _mark(point: Point, across: _Axis, up: _Axis, index: int, name: str) -> str:
    x, y = across.at(point.x), up.at(point.y)
    label = point.label or f"{name} {number(point.x)}".strip()
    facts = f'class="mark c{index % COLOURS}" {_read(f"{label}: {number(point.y)}")}'
    shape = _SHAPES[index % len(_SHAPES)]
    if shape == "circle":
        return f'<circle {facts} cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    corners = {
        "square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -6), (5.5, 4.5), (-5.5, 4.5)),
    }[shape]
    path = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return f'<polygon {facts} points="{path}"/>'


def _frame(body: Sequence[str], across: _Axis, up: _Axis, x: str, y: str) -> str:
    """Return a plane with its axes around what is drawn in it."""
    label = escape(f"{y} over {x}")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{label}">']
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in up.ticks():
        place = up.at(tick)
        parts.append(_rule(LEFT, right, place, place))
        parts.append(_text(LEFT - 6, place + 4, _tick(tick), "end"))
    for tick in across.ticks():
        place = across.at(tick)
        parts.append(_rule(place, place, TOP, bottom))
        parts.append(_text(place, bottom + 17, _tick(tick)))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, escape(x), kind="axis"))
    turned = f'<g transform="translate(13 {(TOP + bottom) / 2:.0f}) rotate(-90)">'
    parts.append(f"{turned}{_text(0, 0, escape(y), kind='axis')}</g>")
    return "".join([*parts, *body, "</svg>"])


def _tick(value: float) -> str:
    """Return a number at an axis without needless zeros."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and text[-1].isdigit() else text


def _legend(named: Sequence[tuple[int, str]]) -> str:
    """Return the names of series with their colours and shapes; none for a single one."""
    if len(named) < 2:
        return ""
    signs = {"circle": "●", "square": "■", "diamond": "◆", "triangle": "▲"}
    items = "".join(
        f'<li><b class="c{i % COLOURS}" aria-hidden="true">{signs[_SHAPES[i % len(_SHAPES)]]}</b> '
        f"{escape(name)}</li>"
        for i, name in named
    )
    return f'<ul class="legend">{items}</ul>'


def heat(values: Sequence[Sequence[float]], labels: Sequence[str]) -> str:
    """Return a square table as cells, darker where a value is larger.

    Args:
        values: a row for each label.
        labels: of rows and columns alike.
    """
    flat = [v for i, row in enumerate(values) for j, v in enumerate(row) if i != j] or [0.0, 1.0]
    low, high = min(flat), max(flat)
    spread = (high - low) or 1.0
    size, edge = 22, 26
    side = size * len(labels) + edge
    about = f'tabindex="0" role="img" aria-label="similarity of {len(labels)} texts"'
    about += f' data-columns="{len(labels)}"'
    parts = [f'<svg class="heat" viewBox="0 0 {side} {side}" {about}>']
    for i, row in enumerate(values):
        place = edge + size * i
        parts.append(_text(20, place + 15, str(i + 1), "end"))
        parts.append(_text(place + size / 2, 19, str(i + 1)))
        for j, value in enumerate(row):
            share = min(max((value - low) / spread, 0.0), 1.0)
            tip = escape(f"{i + 1} and {j + 1}: {value:.3f} | {labels[i][:60]} | {labels[j][:60]}")
            parts.append(
                f'<rect class="cell" x="{edge + size * j}" y="{place}" width="{size - 1}" '
                f'height="{size - 1}" style="fill-opacity:{share:.3f}" data-tip="{tip}"/>'
            )
    return "".join([*parts, "</svg>"])
