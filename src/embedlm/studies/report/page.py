"""A report as one HTML page: no network, no build, readable on paper, a phone and by keyboard."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from embedlm.studies.report.panels import Panel, Table

__all__ = ["page"]


def page(title: str, panels: Sequence[Panel], facts: Sequence[str]) -> str:
    """Return a page.

    Args:
        title: its heading.
        panels: in order.
        facts: lines at its end: how and where the numbers were made.
    """
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    anchors = _anchors([panel.question for panel in panels])
    nav = "".join(
        f'<li><a href="#{anchor}">{escape(panel.question)}</a></li>'
        for anchor, panel in zip(anchors, panels, strict=True)
    )
    body = "".join(_section(a, panel) for a, panel in zip(anchors, panels, strict=True))
    told = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{style}</style></head>\n<body>"
        '<a class="skip" href="#main">Skip to the report</a>'
        f'<header><h1>{escape(title)}</h1><button id="scheme" type="button" '
        'aria-label="Switch between light and dark">◐</button></header>\n'
        f'<nav aria-label="Questions"><ol>{nav}</ol></nav>\n<main id="main">{body}</main>\n'
        f"<footer><h2>How these numbers were made</h2><ul>{told}</ul></footer>"
        f'<div id="tip" role="status" hidden></div><script>{script}</script></body></html>\n'
    )


def _asset(name: str) -> str:
    return (files("embedlm.studies.report") / name).read_text(encoding="utf-8")


def _anchors(texts: Sequence[str]) -> list[str]:
    """Return an anchor for each heading; equal ones are numbered."""
    found: list[str] = []
    for text in texts:
        anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "panel"
        taken = sum(one == anchor or one.startswith(f"{anchor}--") for one in found)
        found.append(f"{anchor}--{taken + 1}" if taken else anchor)
    return found


def _section(anchor: str, panel: Panel) -> str:
    parts = [f'<section id="{anchor}"><h2>{escape(panel.question)}</h2>']
    parts += [f"<p>{escape(panel.answer)}</p>"] if panel.answer else []
    if panel.facts:
        items = "".join(f"<li>{escape(fact)}</li>" for fact in panel.facts)
        parts.append(f"<ul>{items}</ul>")
    if panel.plot:
        told = f"<figcaption>{escape(panel.legend)}</figcaption>" if panel.legend else ""
        parts.append(f"<figure>{panel.plot}{told}</figure>")
    if panel.commands:
        lines = escape("\n".join(panel.commands))
        parts.append(f'<pre tabindex="0"><code>{lines}</code></pre>')
    if panel.table is not None:
        whole = not panel.plot
        parts.append(
            f"<details{' open' if whole else ''}><summary>Table</summary>"
            f"{_table(panel.table, panel.question)}</details>"
        )
    return "".join([*parts, "</section>\n"])


def _table(table: Table, label: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    rows = "".join(
        f"<tr{' class=strong' if index in table.strong else ''}>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>' if not column else f"<td>{escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}, as a table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
