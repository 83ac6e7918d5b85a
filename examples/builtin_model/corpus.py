"""Write the texts that `distill_gpu.py` draws from: documents as sentences, and short texts.

    python corpus.py DATA -o WORK/corpus

`documents.txt` has one sentence a line and an empty line after each document; `pairs.txt` has
titles with their paragraphs, one sentence a line and the title first; `short.txt` has captions,
questions and claims, one a line; `held_out.jsonl` has texts of articles that are in none of them.
Only data whose licence lets the weights be shipped are read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from texts import draw_unseen, read_asked, read_captions, read_documents, sentences, write

BOOKS = 0.15
"""Share of the books that is read."""


def write_documents(path: Path, documents: Iterable[Sequence[str]]) -> None:
    """Write one sentence a line and an empty line after each document."""
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write("\n".join(document) + "\n\n")


def read_pairs(path: Path, without: set[str]) -> list[list[str]]:
    """Return titles with their paragraphs' sentences, without those of some articles."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = [[" ".join(row["q"].split()), *sentences([row["d"]])] for row in rows]
    return [p for p in pairs if len(p) > 1 and p[0].split(":")[0].lower() not in without]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    documents: list[list[str]] = []
    held_out: list[list[str]] = []
    titles: set[str] = set()
    for is_held_out, is_book, title, document in read_documents(args.data):
        if is_held_out:
            held_out.append(document)
            titles.add(title.lower())
        elif not is_book or rng.random() < BOOKS:
            documents.append(document)
    short = read_captions(args.data) + read_asked(args.data)
    args.output.mkdir(parents=True, exist_ok=True)
    write_documents(args.output / "documents.txt", documents)
    pairs = read_pairs(args.data / "wiki_pairs/pairs.jsonl.gz", titles)
    write_documents(args.output / "pairs.txt", pairs)
    once = dict.fromkeys(text for text in short if text)
    (args.output / "short.txt").write_text("\n".join(once) + "\n", encoding="utf-8")
    write(args.output / "held_out.jsonl", draw_unseen(rng, held_out))
    print(f"{len(documents)} documents, {len(pairs)} pairs, {len(once)} short texts")


if __name__ == "__main__":
    main()
