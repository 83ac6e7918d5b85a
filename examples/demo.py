"""Three questions over the documentation, by the floor and by the built-in embedding model."""

from __future__ import annotations

import re
import time
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

import numpy as np

import embedlm
from embedlm.search import Chunking

DOCS = Path(__file__).parent.parent / "docs"
QUESTIONS = (
    "How do I resume an interrupted encode job?",
    "Which prompt asks for one word?",
    "How does the server stop?",
)
WIDTH, INDENT = 80, " " * 11
# First the floor, then the built-in embedding model, which has a recipe of its own.
RECIPES = {
    "static-sif": "averages of word vectors, the floor",
    None: "the built-in embedding model",
}
CUT = Chunking("sentences", 200)
"""The model reads 256 tokens; longer paragraphs are cut."""


def passages(tokenizer: Any) -> list[tuple[str, str, str]]:
    """Return (page, heading, paragraph) of every paragraph of the docs that is prose, not code."""
    found = []
    for page in sorted(DOCS.rglob("*.md")):
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        name, heading = page.relative_to(DOCS).as_posix(), ""
        for block in re.split(r"\n\n|\n(?=- )", prose):
            if block.lstrip().startswith("#"):
                heading = block.strip().lstrip("# ")
                continue
            text = " ".join(block.split())
            if len(text) > 60 and not text.startswith("|"):
                parts = [text[start:end] for start, end in CUT.spans(text, tokenizer)]
                found += [(name, heading, part) for part in parts]
    return found


def ask(recipe: str | None, found: list[tuple[str, str, str]]) -> None:
    """Embed the passages by one recipe and print the best for each question."""
    start = time.perf_counter()
    model = embedlm.load(recipe=recipe)
    texts = [f"{heading}\n{text}" for _, heading, text in found]
    if model.recipe.pooling.weights != "none":
        model.fit(texts)
    loaded = time.perf_counter()
    documents = model.encode_document(texts)
    embedded = time.perf_counter()
    queries = model.encode_query(list(QUESTIONS))
    scores = model.similarity(queries, documents)
    answered = time.perf_counter()
    print(f"recipe {model.recipe.name}: {RECIPES[recipe]}\n")
    for question, row in zip(QUESTIONS, scores, strict=True):
        print(f"  {question}")
        for index in np.argsort(-row)[:2].tolist():
            page, heading, text = found[index]
            print(f"    {row[index]:.3f}  {page}, {heading}")
            print(fill(shorten(text, 160), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT))
        print()
    print(
        f"load {loaded - start:.2f} s, {len(texts)} passages {embedded - loaded:.2f} s "
        f"({len(texts) / (embedded - loaded):.0f} a second), "
        f"{len(QUESTIONS)} questions {answered - embedded:.3f} s\n"
    )


def main() -> None:
    """Show what both recipes find, the better one last."""
    found = passages(embedlm.load().tokenizer)
    print(f"EmbedLM {embedlm.__version__}, {len(found)} passages of docs/\n")
    for recipe in RECIPES:
        ask(recipe, found)


if __name__ == "__main__":
    main()
