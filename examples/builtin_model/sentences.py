"""Bare texts for distillation, one a line, in random order, none twice.

python sentences.py plaintext_en.txt.xz -o WORK/data/sentences.txt --count 400000
python sentences.py snli/dev.jsonl.gz stsb_train.jsonl.gz -o WORK/data/short.txt
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import random
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])")
WORDS = range(4, 41)
FIELDS = ("premise", "hypothesis", "s1", "s2", "q", "a", "b", "text")


def of_corpus(path: Path) -> Iterator[str]:
    """Yield the sentences of a corpus that have between 4 and 40 words."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for paragraph in file:
            for sentence in END.split(paragraph.strip()):
                if len(sentence.split()) in WORDS and sentence[-1] in ".!?\"'":
                    yield " ".join(sentence.split())


def of_records(path: Path) -> Iterator[str]:
    """Yield every short text of a file of records."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
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
    read = (of_corpus(p) if p.suffix == ".xz" else of_records(p) for p in settings.files)
    found = list(dict.fromkeys(chain.from_iterable(read)))
    random.Random(settings.seed).shuffle(found)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{text}\n" for text in found[: settings.count]]
    settings.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} of {len(found)} texts")


if __name__ == "__main__":
    main()
