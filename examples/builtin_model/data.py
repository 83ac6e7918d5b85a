"""Turn the plain text into three token streams: train and one held-out stream per source.

    python data.py CORPUS.txt.xz --tokenizer WORK/tokenizer -o WORK/tokens

A document is cut at paragraph ends into pieces of 250 to 2,000 characters, so that the model meets
many beginnings of texts of all lengths; a piece becomes `<|bos|> tokens <|eos|>`. The pieces of
both sources are shuffled together once, here: training then reads the stream from front to back,
and a position in it is one number.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from embedlm.data import read_rows

TokenIds = npt.NDArray[np.uint16]
PIECE_SIZE = (250, 2_000)
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
"""Ids of the first special tokens; tokenizer.py lists them in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One article or book."""

    source: str
    """"wikipedia" or "books"."""
    text: str
    """One paragraph per line; the first line is the title."""


def read_documents(corpus: Path) -> Iterator[Document]:
    """Yield the documents of a file in which a blank line ends a document.

    Books begin with a "Title: ..." line and an "Author: ..." line; all else is Wikipedia.
    """
    lines: list[str] = []
    for _, record in read_rows(corpus):
        if record["text"]:
            lines.append(f"{record['text']}\n")
        elif lines:
            yield _document(lines)
            lines = []
    if lines:
        yield _document(lines)


def _document(lines: Sequence[str]) -> Document:
    text = "".join(lines).strip()
    is_book = lines[0].startswith("Title: ") and len(lines) > 1 and lines[1].startswith("Author: ")
    return Document(source="books" if is_book else "wikipedia", text=text)


def split_pieces(text: str, rng: random.Random) -> Iterator[str]:
    """Group paragraphs into pieces; each piece draws its own size from `PIECE_SIZE`.

    A paragraph that is longer than the piece stays whole.
    """
    piece: list[str] = []
    size, limit = 0, rng.randint(*PIECE_SIZE)
    for paragraph in text.split("\n"):
        if piece and size + len(paragraph) > limit:
            yield "\n".join(piece)
            piece, size, limit = [], 0, rng.randint(*PIECE_SIZE)
        piece.append(paragraph)
        size += len(paragraph)
    yield "\n".join(piece)


def split_held_out(
    documents: Sequence[Document], fraction: float
) -> tuple[list[Document], dict[str, list[Document]]]:
    """Set the last `fraction` of each source's documents aside."""
    train: list[Document] = []
    held_out: dict[str, list[Document]] = {}
    for source in sorted({document.source for document in documents}):
        of_source = [document for document in documents if document.source == source]
        n_held_out = math.ceil(len(of_source) * fraction)
        train += of_source[:-n_held_out]
        held_out[source] = of_source[-n_held_out:]
    return train, held_out


def tokenize(pieces: Sequence[str], tokenizer: Tokenizer, batch: int = 4096) -> TokenIds:
    """Concatenate `<|bos|> piece <|eos|>` of all pieces; the tokenizer itself puts the BOS."""
    arrays: list[TokenIds] = []
    for start in range(0, len(pieces), batch):
        for encoding in tokenizer.encode_batch_fast(list(pieces[start : start + batch])):
            arrays.append(np.asarray([*encoding.ids, EOS_ID], dtype=np.uint16))
    return np.concatenate(arrays)


def write_stream(path: Path, pieces: Sequence[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Write one stream of uint16 under a temporary name, rename it, and return its counts."""
    ids = tokenize(pieces, tokenizer)
    part = path.with_suffix(".part")
    ids.tofile(part)
    os.replace(part, path)
    n_bytes = sum(len(piece.encode()) for piece in pieces)
    return {"pieces": len(pieces), "bytes": n_bytes, "tokens": len(ids)}


def open_stream(path: Path) -> TokenIds:
    """Map a stream into memory without reading it."""
    return np.memmap(path, dtype=np.uint16, mode="r")


def main() -> None:
    """Tokenise once; training only reads the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="plain text, .xz")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.py")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the streams")
    parser.add_argument("--held-out", type=float, default=0.005, help="share of the documents")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    args.out.mkdir(parents=True, exist_ok=True)
    train, held_out = split_held_out(list(read_documents(args.corpus)), args.held_out)
    streams = {f"held_out_{source}": documents for source, documents in held_out.items()}
    streams["train"] = train
    counts = {}
    for name, documents in streams.items():
        pieces = [piece for document in documents for piece in split_pieces(document.text, rng)]
        rng.shuffle(pieces)
        counts[name] = write_stream(args.out / f"{name}.bin", pieces, tokenizer)
        print(name, counts[name])
    (args.out / "counts.json").write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
