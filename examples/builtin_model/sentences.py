"""Bare texts for distillation, one a line, in random order, none twice.

python sentences.py plaintext_en.txt.xz -o WORK/data/sentences.txt --count 400000
python sentences.py snli/dev.jsonl.gz stsb_train.jsonl.gz -o WORK/data/short.txt
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from embedlm.data import Source, read_rows

END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])")
WORDS = range(4, 41)
FIELDS = ("premise", "hypothesis", "s1", "s2", "q", "a", "b", "text")


def of_corpus(path: Path) -> Iterator[str]:
    """Yield the sentences of a corpus that have between 4 and 40 words."""
    for _, paragraph in read_rows(path):
        for sentence in END.split(paragraph["text"].strip()):
            if len(sentence.split()) in WORDS and sentence[-1] in ".!?\"'":
                yield " ".join(sentence.split())


def of_records(path: Path) -> Iterator[str]:
    """Yield every short text of a file of records."""
    for _, record in read_rows(path):
        for name in FIELDS:
            text = " ".join(str(record.get(name, "")).split())
            if text and len(text.split()) < WORDS.stop:
                yield text


def main() -> None:
    """Write a sample of the texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="A corpus (.xz) or records (.jsonl.gz)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    texts_of_files = (
        of_corpus(path) if Source(path).form == "txt" else of_records(path)
        for path in settings.files
    )
    texts = list(dict.fromkeys(chain.from_iterable(texts_of_files)))
    random.Random(settings.seed).shuffle(texts)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{text}\n" for text in texts[: settings.count]]
    settings.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} of {len(texts)} texts")


if __name__ == "__main__":
    main()
