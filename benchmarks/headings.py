"""Do headings help to find paragraphs? Ten questions over pages of the documentation.

    python benchmarks/headings.py

Each heading is a passage of its own, as it was before 2026-11-26, or goes with the paragraphs below
it. The rank is that of the first paragraph of the section that answers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import embedlm
from embedlm.search import Document, read_documents

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [
    *("compress.md", "concepts.md", "encode.md", "gguf.md", "indexing.md", "mine.md", "serve.md"),
    *("methods/echo.md", "methods/prompteol-icl.md", "methods/prompteol.md"),
]
QUESTIONS = (
    ("how is attention checked?", "concepts.md", "How attention is checked"),
    ("How do I resume an interrupted encode job?", "encode.md", "A stopped job goes on"),
    ("Which prompt asks for one word?", "methods/prompteol.md", "PromptEOL"),
    ("Why are there no padding tokens?", "concepts.md", "Packing"),
    (
        "Can I open a model that Ollama has downloaded?",
        "gguf.md",
        "Coming from llama.cpp, Ollama or LM Studio",
    ),
    ("How do I store a model's weights in fewer bits?", "compress.md", "compress"),
    ("Does the server give metrics to Prometheus?", "serve.md", "Log and metrics"),
    (
        "How are false negatives kept out of mined passages?",
        "mine.md",
        "Filters of false negatives",
    ),
    ("How do I copy an index to a Qdrant server?", "indexing.md", "On a server"),
    ("What is an attention sink?", "concepts.md", "Attention sinks"),
)
"""A question, the page that answers it, and the section."""


def pages(folder: Path) -> None:
    """Copy the pages into a folder."""
    for name in PAGES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(DOCS / name, folder / name)


def answers(documents: list[Document]) -> Iterator[set[str]]:
    """Yield the ids of the paragraphs below each question's heading."""
    for _, page, section in QUESTIONS:
        above = ((d, d.text.partition("\n")[0].split(" > ")) for d in documents if d.file == page)
        yield {str(d.id) for d, headings in above if section in headings}


def main() -> None:
    """Print the ranks both ways."""
    model = embedlm.load()
    queries = model.encode_query([question for question, *_ in QUESTIONS])
    with tempfile.TemporaryDirectory() as name:
        pages(Path(name))
        wanted = list(answers(list(read_documents(name))))
        for headings in (False, True):
            documents = list(read_documents(name, headings=headings))
            ids = [str(document.id) for document in documents]
            vectors = model.encode_document([document.text for document in documents])
            order = np.argsort(-model.similarity(queries, vectors), axis=1, kind="stable")
            ranks = [
                1 + next(i for i, place in enumerate(row) if ids[place] in right)
                for row, right in zip(order.tolist(), wanted, strict=True)
            ]
            print(
                f"headings with their paragraphs: {headings}; {len(ids)} passages, ranks {ranks}, "
                f"MRR {np.mean([1 / rank for rank in ranks]):.3f}"
            )


if __name__ == "__main__":
    main()
