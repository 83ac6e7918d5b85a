"""`as_sentence_transformer()` against SentenceTransformer on the same folder, in turn, in one run.

    python benchmarks/bridge.py [--texts 1000] [--rounds 5] [--threads 2]

The model is the built-in one. Printed are, for each workload, the processor seconds of
sentence-transformers divided by ours (the median of the rounds, with the smallest and the largest;
above 1 the bridge is faster), and the largest difference between the vectors.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

import embedlm

WORDS = ["plants", "make", "food", "from", "light", "a", "court", "ruled", "that", "the", "law"]


def workloads(count: int) -> dict[str, list[str]]:
    """Return made-up texts: distinct, of mixed lengths, and with each text four times."""
    generator = random.Random(0)

    def text(words: int) -> str:
        return " ".join(generator.choice(WORDS) for _ in range(words))

    sentences = [text(generator.randint(6, 20)) for _ in range(count)]
    mixed = [text(generator.choice([4, 16, 64, 128])) for _ in range(count // 4)]
    repeated = sentences[: count // 4] * 4
    generator.shuffle(repeated)
    return {"sentences": sentences, "mixed lengths": mixed, "each sentence four times": repeated}


def seconds(encode: Callable[[list[str]], Any], texts: list[str]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    encode(texts)
    return time.process_time() - start


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = embedlm.load(device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": "float32"})
    ours = model.as_sentence_transformer()
    for name, texts in workloads(args.texts).items():
        apart = float(np.abs(ours.encode(texts) - theirs.encode(texts)).max())
        ratios = []
        for number in range(args.rounds):
            first, second = (ours, theirs) if number % 2 else (theirs, ours)
            taken = {id(each): seconds(each.encode, texts) for each in (first, second)}
            ratios.append(taken[id(theirs)] / taken[id(ours)])
        low, high = min(ratios), max(ratios)
        middle = statistics.median(ratios)
        print(f"{name:26} {middle:5.2f} ({low:.2f} to {high:.2f}), apart {apart:.1e}")


if __name__ == "__main__":
    main()
