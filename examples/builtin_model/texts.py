"""Write the stream of texts that the teacher embeds and the student learns from.

    python texts.py DATA -o WORK/stream --count 600000

`train.jsonl` has one `{"kind", "text"}` a line in the order of training; `held_out.jsonl` has
texts of articles that the stream never shows. A kind whose texts run out starts again in a new
order; passages are drawn anew each time. Only data whose licence lets the weights be shipped are
read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SHARES = {"sentence": 0.20, "caption": 0.25, "title": 0.10, "passage": 0.45}
"""Share of each kind among the texts."""
HELD_OUT = 100
"""One article in so many is held out."""
PASSAGE_WORDS = (12, 190)
"""Passages have a log-uniform number of words: few reach the limit of 256 tokens."""
DEV_CLAIMS = 300
"""SciFact's last training claims are dev queries, and never trained on."""
BOOKS = 0.15
"""Share of books among sentences and passages: the rest is Wikipedia."""
Documents = Sequence[Sequence[str]]
END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])")


def read_corpus(path: Path) -> Iterator[tuple[bool, list[str]]]:
    """Yield each document as (is a book, its lines)."""
    lines: list[str] = []
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            if line != "\n":
                lines.append(line.strip())
            elif lines:
                yield lines[0].startswith("Title: "), lines
                lines = []
    if lines:
        yield lines[0].startswith("Title: "), lines


def read_documents(data: Path) -> Iterator[tuple[bool, bool, str, list[str]]]:
    """Yield each document of some length: held out or not, a book or not, title and sentences."""
    for n, (is_book, lines) in enumerate(read_corpus(data / "plaintext/plaintext_en.txt.xz")):
        document = sentences(lines[2:] if is_book else lines)
        if len(document) >= 5:
            yield n % HELD_OUT == 0, is_book, lines[0], document


def read_captions(data: Path) -> list[str]:
    """Return the sentences of image captions and of STS-B's training split."""
    captions = read_fields(data / "sts/stsb_train.jsonl.gz", "s1", "s2")
    for split in ("dev", "test"):
        captions += read_fields(data / f"snli_devtest/{split}.jsonl.gz", "premise", "hypothesis")
    return captions


def read_asked(data: Path) -> list[str]:
    """Return questions and claims."""
    asked = read_fields(data / "banking77/train.jsonl.gz", "text")
    return asked + read_fields(data / "ir_scifact/queries_train.jsonl.gz", "text")[:-DEV_CLAIMS]


def read_fields(path: Path, *names: str) -> list[str]:
    """Return the given fields of a file of records."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [" ".join(record[name].split()) for record in records for name in names]


def sentences(lines: Sequence[str]) -> list[str]:
    """Return the sentences of a document's paragraphs."""
    return [s for line in lines for s in END.split(line) if len(s.split()) >= 4]


def draw_sentence(rng: random.Random, document: Sequence[str]) -> str:
    """Return one sentence of 4 to 45 words."""
    for _ in range(10):
        text = rng.choice(document)
        if len(text.split()) <= 45:
            return text
    return " ".join(text.split()[:45])


def draw_passage(rng: random.Random, document: Sequence[str]) -> str:
    """Return consecutive sentences up to a random number of words."""
    low, high = (math.log(n) for n in PASSAGE_WORDS)
    size = math.exp(rng.uniform(low, high))
    start = rng.randrange(len(document))
    words: list[str] = []
    for text in document[start:]:
        words += text.split()
        if len(words) >= size:
            break
    return " ".join(words[: PASSAGE_WORDS[1]])


def draw_unseen(rng: random.Random, held_out: Documents) -> list[tuple[str, str]]:
    """Return 500 sentences and 500 passages of documents that are held out, each with its kind."""
    unseen = [("sentence", draw_sentence(rng, d)) for d in rng.choices(held_out, k=500)]
    return unseen + [("passage", draw_passage(rng, d)) for d in rng.choices(held_out, k=500)]


Draw = Callable[[random.Random, Sequence[str]], str]


def from_documents(
    rng: random.Random, wiki: Documents, books: Documents, draw: Draw
) -> Iterator[str]:
    """Yield texts of documents drawn by the square root of their length."""
    pools = [
        (documents, [math.sqrt(len(document)) for document in documents])
        for documents in (books, wiki)
    ]
    while True:
        documents, weights = pools[rng.random() >= BOOKS]
        for document in rng.choices(documents, weights, k=64):
            yield draw(rng, document)


def in_turn(rng: random.Random, texts: Sequence[str]) -> Iterator[str]:
    """Yield all texts in random order, again and again."""
    order = list(dict.fromkeys(text for text in texts if text))
    while True:
        rng.shuffle(order)
        yield from order


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    wiki: list[list[str]] = []
    books: list[list[str]] = []
    held_out: list[list[str]] = []
    for is_held_out, is_book, _, document in read_documents(args.data):
        (held_out if is_held_out else books if is_book else wiki).append(document)
    captions = read_captions(args.data)
    titles = [t for t in read_fields(args.data / "wiki_pairs/pairs.jsonl.gz", "q") if len(t) < 300]
    rng = random.Random(args.seed)
    # Questions and claims are few: they stand beside as many titles, and come again sooner.
    asked = read_asked(args.data)
    draws = {
        "sentence": from_documents(rng, wiki, books, draw_sentence),
        "caption": in_turn(rng, captions),
        "title": in_turn(rng, asked + rng.sample(titles, 2 * len(asked))),
        "passage": from_documents(rng, wiki, books, draw_passage),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=args.count)
    write(args.output / "train.jsonl", [(kind, next(draws[kind])) for kind in kinds])
    write(args.output / "held_out.jsonl", draw_unseen(rng, held_out))
    print(f"{len(wiki)} articles, {len(books)} books, {len(held_out)} documents held out")


def write(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Write one text a line."""
    with path.open("w", encoding="utf-8") as file:
        for kind, text in rows:
            print(json.dumps({"kind": kind, "text": text}, ensure_ascii=False), file=file)


if __name__ == "__main__":
    main()
