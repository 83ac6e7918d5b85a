"""Three questions over the documentation, with the built-in models under two recipes."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import embedlm

DOCS = Path(__file__).parent.parent / "docs"
QUESTIONS = (
    "How do I resume an interrupted encode job?",
    "Which prompt asks for one word?",
    "How is bidirectional attention checked?",
)
# The built-in embedding model has a recipe of its own; the other is the floor from before it.
RECIPES = (None, "static-sif")


def passages() -> list[tuple[str, str]]:
    """Return (page, paragraph) of every paragraph of the docs that is prose; code is left out."""
    found = []
    for page in sorted(DOCS.rglob("*.md")):
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        name = page.relative_to(DOCS).as_posix()
        for block in re.split(r"\n\n|\n(?=- )", prose):
            if block.lstrip().startswith("#"):
                name = f"{page.relative_to(DOCS).as_posix()}, {block.strip().lstrip('# ')}"
                continue
            text = " ".join(block.split())
            if len(text) > 60 and not text.startswith("|"):
                found.append((name, text))
    return found


def ask(console: Console, recipe: str | None, found: list[tuple[str, str]]) -> None:
    """Embed the passages by one recipe and show the best for each question."""
    start = time.perf_counter()
    model = embedlm.load(recipe=recipe)
    texts = [text for _, text in found]
    if model.recipe.pooling.weights != "none":
        model.fit(texts)
    loaded = time.perf_counter()
    documents = model.encode_document(texts)
    embedded = time.perf_counter()
    queries = model.encode_query(list(QUESTIONS))
    scores = model.similarity(queries, documents)
    answered = time.perf_counter()
    table = Table(title=f"recipe {model.recipe.name}", title_justify="left", show_lines=True)
    for column in ("question", "score", "page, heading", "passage"):
        table.add_column(column, overflow="fold")
    for question, row in zip(QUESTIONS, scores, strict=True):
        for place, index in enumerate(np.argsort(-row)[:2].tolist()):
            page, text = found[index]
            short = text if len(text) <= 160 else text[:157] + "..."
            table.add_row(
                "" if place else question, f"{row[index]:.3f}", escape(page), escape(short)
            )
    console.print(table)
    console.print(
        f"load {loaded - start:.2f} s, {len(texts)} passages {embedded - loaded:.2f} s "
        f"({len(texts) / (embedded - loaded):.0f} a second), "
        f"{len(QUESTIONS)} questions {answered - embedded:.3f} s\n"
    )


def main() -> None:
    """Show what both recipes find."""
    console = Console(width=110)
    found = passages()
    console.print(
        f"EmbedLM {embedlm.__version__}, built-in model, {len(found)} passages of docs/\n"
    )
    for recipe in RECIPES:
        ask(console, recipe, found)


if __name__ == "__main__":
    main()
