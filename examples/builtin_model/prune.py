"""Cut a language model to its first layers, its most used tokens and its busiest neurons.

    python prune.py MODEL.gguf DATA/plaintext/plaintext_en.txt.xz DATA/snli_devtest/dev.jsonl.gz \\
        --layers 8 --vocabulary 16384 -o WORK/pruned

`embedlm compress` does the same with files of one text field; the records read here have several.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

from embedlm.compress import prune
from embedlm.data import Source

FIELDS = ("premise", "hypothesis", "s1", "s2", "q", "d", "text")


def read_texts(path: Path) -> Iterator[str]:
    """Yield the lines of a corpus, or the texts of records."""
    for row in Source(path).rows():
        if row.error is not None:
            raise SystemExit(f"{path}:{row.line}: {row.error}")
        record = {"text": row.value} if isinstance(row.value, str) else row.value
        yield from (record[name] for name in FIELDS if isinstance(record.get(name), str))


def main() -> None:
    """Write the cut model and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder, hub id or .gguf file")
    parser.add_argument(
        "texts", type=Path, nargs="+", help="to count tokens in, measure neurons on"
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--intermediate", type=int, help="neurons of a layer; not given: all")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    facts = prune(
        args.model,
        args.output,
        layers=args.layers,
        vocabulary=args.vocabulary,
        intermediate=args.intermediate,
        texts=itertools.chain.from_iterable(map(read_texts, args.texts)),
        save_dtype="bfloat16",
    )
    print(
        f"{facts['tokens'][1]} tokens, {facts['layers'][1]} layers of "
        f"{facts['intermediate'][1]} neurons; texts are {facts['length'] - 1:+.1%} longer"
    )


if __name__ == "__main__":
    main()
