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

from texts import (
    DEV_CLAIMS,
    HELD_OUT,
    draw_passage,
    draw_sentence,
    read_corpus,
    read_fields,
    sentences,
    write,
)

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
    for n, (is_book, lines) in enumerate(read_corpus(args.data / "plaintext/plaintext_en.txt.xz")):
        document = sentences(lines[2:] if is_book else lines)
        if len(document) < 5:
            continue
        if n % HELD_OUT == 0:
            held_out.append(document)
            titles.add(lines[0].lower())
        elif not is_book or rng.random() < BOOKS:
            documents.append(document)
    short = read_fields(args.data / "sts/stsb_train.jsonl.gz", "s1", "s2")
    for split in ("dev", "test"):
        short += read_fields(args.data / f"snli_devtest/{split}.jsonl.gz", "premise", "hypothesis")
    asked = read_fields(args.data / "banking77/train.jsonl.gz", "text")
    asked += read_fields(args.data / "ir_scifact/queries_train.jsonl.gz", "text")[:-DEV_CLAIMS]
    args.output.mkdir(parents=True, exist_ok=True)
    write_documents(args.output / "documents.txt", documents)
    pairs = read_pairs(args.data / "wiki_pairs/pairs.jsonl.gz", titles)
    write_documents(args.output / "pairs.txt", pairs)
    once = dict.fromkeys(text for text in [*short, *asked] if text)
    (args.output / "short.txt").write_text("\n".join(once) + "\n", encoding="utf-8")
    unseen = [("sentence", draw_sentence(rng, d)) for d in rng.choices(held_out, k=500)]
    unseen += [("passage", draw_passage(rng, d)) for d in rng.choices(held_out, k=500)]
    write(args.output / "held_out.jsonl", unseen)
    print(f"{len(documents)} documents, {len(pairs)} pairs, {len(once)} short texts")


if __name__ == "__main__":
    main()
