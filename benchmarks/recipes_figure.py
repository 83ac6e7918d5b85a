"""Draw the home page's figure: one language model by several recipes, from docs/results.md.

    python benchmarks/recipes_figure.py

Writes docs/assets/recipes-light.svg and recipes-dark.svg. It measures nothing: the table of
`SECTION` holds the numbers.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SECTION = "Recipes on a language model"
ROW = re.compile(r"^\| `([\w-]+)` \| (\d\.\d+) ", re.MULTILINE)
LEFT_OUT = ("static-mean", "static-tfidf", "echo-last", "inner-mean", "promptsth", "one-pass")
"""Recipes that would make the figure long and tell nothing more."""
SCHEMES = {
    "light": {"text": "#3c4043", "bar": "#9fa8da", "best": "#3f51b5"},
    "dark": {"text": "#d5d8e4", "bar": "#5c6bc0", "best": "#9fa8da"},
}
WIDTH, LEFT, STEP, TOP = 560, 205, 30, 58


def scores(page: str) -> list[tuple[str, float]]:
    """Return each recipe of the section's table with its first score, the lowest first."""
    section = page.split(f"## {SECTION}\n")[1].split("\n## ")[0]
    found = [(name, float(score)) for name, score in ROW.findall(section) if name not in LEFT_OUT]
    return sorted(found, key=lambda row: row[1])


def svg(rows: list[tuple[str, float]], scheme: str) -> str:
    """Return a bar for each recipe."""
    colours = SCHEMES[scheme]
    height = TOP + STEP * len(rows) + 8
    scale = (WIDTH - LEFT - 50) / max(score for _, score in rows)
    label = "; ".join(f"{name} {score:.2f}" for name, score in rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{label}" font-family="sans-serif" font-size="15" fill="{colours["text"]}">',
        '<text x="0" y="18" font-weight="bold">One language model, several recipes</text>',
        '<text x="0" y="40" font-size="13">SmolLM2-135M, not tuned; STS-B test, Spearman</text>',
    ]
    for place, (name, score) in enumerate(rows):
        y = TOP + STEP * place
        bar = colours["best" if place == len(rows) - 1 else "bar"]
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 16}" text-anchor="end">{name}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{score * scale:.0f}" height="22" rx="3" '
            f'fill="{bar}"/>',
            f'<text x="{LEFT + score * scale + 8:.0f}" y="{y + 16}">{score:.2f}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Write both figures."""
    rows = scores((DOCS / "results.md").read_text(encoding="utf-8"))
    for scheme in SCHEMES:
        (DOCS / f"assets/recipes-{scheme}.svg").write_text(svg(rows, scheme), encoding="utf-8")


if __name__ == "__main__":
    main()
