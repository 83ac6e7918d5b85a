"""A report as Markdown, for model cards and pages of documentation."""

from __future__ import annotations

from collections.abc import Sequence

from embedlm.studies.report.panels import Panel, Table

__all__ = ["markdown"]


def markdown(title: str, panels: Sequence[Panel], facts: Sequence[str]) -> str:
    """Return the panels with their tables in place of the plots.

    Args:
        title: its heading.
        panels: in order.
        facts: lines at its end: how and where the numbers were made.
    """
    parts = [f"# {title}"]
    for panel in panels:
        parts.append(f"## {panel.question}")
        parts += [panel.answer] if panel.answer else []
        parts += ["\n".join(f"- {fact}" for fact in panel.facts)] if panel.facts else []
        if panel.commands:
            parts.append("```text\n" + "\n".join(panel.commands) + "\n```")
        parts += [_table(panel.table)] if panel.table is not None else []
    parts.append("\n".join(f"- {fact}" for fact in facts))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rows = [_row(table.head), "|" + "---|" * len(table.head)]
    for index, cells in enumerate(table.rows):
        strong = index in table.strong
        rows.append(_row([f"**{cell}**" if strong and cell else cell for cell in cells]))
    return "\n".join(rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
