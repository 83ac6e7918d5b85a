"""Score a checkpoint on dev sets, quickly: no test split is read.

    python score.py WORK/pruned WORK/stream WORK/run/checkpoint.pt DATA --curve WORK/curve.jsonl

STS-B dev (Spearman); SciFact claims that training leaves out, over their abstracts and 700 others
(nDCG@10); Banking77, a probe on four fifths of the training split, scored on the rest; the cosine
to the teacher on held-out texts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distill import bind
from ridge import read_stream
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from student import Student, Tokens, encode
from texts import DEV_CLAIMS

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Model:
    """A student with its tokenizer."""

    def __init__(self, folder: Path, checkpoint: Path, width: int, weights: str) -> None:
        state = torch.load(checkpoint, mmap=True)
        self.progress = state["progress"]
        self.student = Student.load(folder, state["layers"], width, state["attention"] == "causal")
        bind(self.student, state[weights].bfloat16(), None)
        self.tokens = Tokens(folder)

    def __call__(self, texts: list[str]) -> Vectors:
        """Return unit vectors."""
        vectors: Vectors = encode(self.student, self.tokens(texts)).numpy()
        return vectors


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sts(model: Model, data: Path) -> float:
    """Return Spearman's correlation on STS-B dev."""
    rows = read(data / "sts/stsb_dev.jsonl.gz")
    first, second = (model([row[name] for row in rows]) for name in ("s1", "s2"))
    return float(spearmanr((first * second).sum(1), [row["score"] for row in rows]).statistic)


def scifact(model: Model, data: Path, others: int = 700) -> float:
    """Return nDCG@10 of the claims left out, over some abstracts."""
    folder = data / "ir_scifact"
    claims = {r["_id"]: r["text"] for r in read(folder / "queries_train.jsonl.gz")[-DEV_CLAIMS:]}
    relevant: dict[str, set[str]] = {}
    for row in read(folder / "qrels_train.jsonl.gz"):
        if row["q"] in claims:
            relevant.setdefault(row["q"], set()).add(row["d"])
    corpus = {r["_id"]: f"{r['title']} {r['text']}" for r in read(folder / "corpus.jsonl.gz")}
    gold = sorted(set().union(*relevant.values()))
    rest = random.Random(0).sample(sorted(set(corpus) - set(gold)), others)
    names = gold + rest
    queries = [q for q in claims if q in relevant]
    scores = model([claims[q] for q in queries]) @ model([corpus[d] for d in names]).T
    found = []
    for q, order in zip(queries, np.argsort(-scores, kind="stable")[:, :10], strict=True):
        gains = [(names[d] in relevant[q]) / np.log2(n + 2) for n, d in enumerate(order)]
        ideal = sum(1 / np.log2(n + 2) for n in range(min(10, len(relevant[q]))))
        found.append(sum(gains) / ideal)
    return float(np.mean(found))


def banking(model: Model, data: Path) -> float:
    """Return a linear probe's accuracy within the training split."""
    rows = read(data / "banking77/train.jsonl.gz")
    random.Random(0).shuffle(rows)
    vectors = model([row["text"] for row in rows])
    labels = np.array([row["label"] for row in rows])
    cut = len(rows) // 5
    probe = LogisticRegression(C=1.0, max_iter=1000).fit(vectors[cut:], labels[cut:])
    return float((probe.predict(vectors[:cut]) == labels[:cut]).mean())


def held_out(model: Model, stream: Path) -> dict[str, float]:
    """Return the mean cosine to the teacher by kind of text."""
    texts, y_NE = read_stream(stream / "held_out.jsonl")
    with (stream / "held_out.jsonl").open() as file:
        kinds = np.array([json.loads(line)["kind"] for line in file])
    cosine = (model(texts) * y_NE.numpy()).sum(1)
    return {
        f"cosine_{kind}": float(cosine[kinds == kind].mean()) for kind in ("sentence", "passage")
    }


def main() -> None:
    """Print a row, and add it to the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of prune.py")
    parser.add_argument("stream", type=Path, help="folder of texts.py")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--weights", choices=("average", "master"), default="average")
    parser.add_argument("--name", default="")
    parser.add_argument("--curve", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Model(args.model, args.checkpoint, 384, args.weights)
    progress = model.progress
    row: dict[str, Any] = {
        "name": args.name or args.checkpoint.parent.name,
        "weights": args.weights,
        "hours": round(progress["seconds"] / 3600, 3),
        "texts": progress["position"],
        **held_out(model, args.stream),
        "stsb_dev": sts(model, args.data),
        "scifact_dev": scifact(model, args.data),
        "banking77_dev": banking(model, args.data),
        "time": time.strftime("%H:%M"),
    }
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    print(line)
    if args.curve is not None:
        with args.curve.open("a") as file:
            print(line, file=file)


if __name__ == "__main__":
    main()
