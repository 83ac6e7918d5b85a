"""Tables of HTML that hold data, written as those of Markdown are read: one paragraph each."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Table"]

LONGEST_CELL = 300
"""Characters; a table with a longer cell lays out a page, and holds no data."""


@dataclass
class Table:
    """A table that is being read, without those inside it."""

    first: int
    """The place of its first paragraph among the rows of the page."""
    cells: list[list[str]] = field(default_factory=list)
    plain: bool = True
    """Whether it holds nothing but text: no heading, no other table."""

    def enter(self, tag: str) -> None:
        """Enter an element of the table: a row, a cell, or a table inside it."""
        if tag == "table":
            self.plain = False
        elif tag == "tr" or (tag in ("td", "th") and not self.cells):
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def add(self, text: str, level: int, place: int) -> None:
        """Add a paragraph to the cell that is open.

        Args:
            text: of the paragraph.
            level: 0, or that of a heading.
            place: of the paragraph among the rows of the page.
        """
        if self.cells and self.cells[-1]:
            self.plain &= not level
            self.cells[-1][-1] = f"{self.cells[-1][-1]} {text}".strip()
        elif not self.cells:  # its caption
            self.first = place + 1
        else:
            self.plain = False

    def as_markdown(self) -> str | None:
        """Return its rows on one line, as those of Markdown's are read; None: it is no data."""
        rows = [row for row in self.cells if any(row)]
        width = max(map(len, rows), default=0)
        longest = max((len(cell) for row in rows for cell in row), default=0)
        if not self.plain or len(rows) < 2 or width < 2 or longest > LONGEST_CELL:
            return None
        head, *others = (row + [""] * (width - len(row)) for row in rows)
        lines = [head, ["---"] * width, *others]
        return " ".join(f"| {' | '.join(row)} |" for row in lines)
