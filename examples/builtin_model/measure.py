"""Measure models on the test sets, once training is over, for the cards.

    python measure.py DATA -o WORK/scores.json builtin=WORK/models/tuned teacher=WORK/teacher

STS: Spearman, and its mean over STS12, 13, 15 and 16. SciFact and Cranfield: nDCG@10 over whole
documents. Banking77: a linear probe (logistic regression, C = 1), trained on the training split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from score import read
from sklearn.linear_model import LogisticRegression

import embedlm

PAIRS = ("sts12", "sts13", "sts15", "sts16")
TASKS = ("stsb_test", *PAIRS, "scifact", "cranfield")


def probe(model: embedlm.Embedder, data: Path) -> float:
    """Return the accuracy of a linear probe on Banking77's test split."""
    parts = [read(data / f"banking77/{split}.jsonl.gz") for split in ("train", "test")]
    (train, labels), (test, gold) = (
        (model.encode([row["text"] for row in rows]), [row["label"] for row in rows])
        for rows in parts
    )
    return float(LogisticRegression(C=1.0, max_iter=1000).fit(train, labels).score(test, gold))


def measure(model: embedlm.Embedder, data: Path) -> dict[str, float]:
    """Return the scores of a model by task."""
    found = {one.task: one.score for one in embedlm.evaluate(model, list(TASKS), data=data)}
    return {
        "STS-B": found["stsb_test"],
        "STS12, 13, 15, 16": sum(found[name] for name in PAIRS) / len(PAIRS),
        "SciFact": found["scifact"],
        "Cranfield": found["cranfield"],
        "Banking77": probe(model, data),
    }


def main() -> None:
    """Measure the models that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    rows = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    for name, folder in (text.split("=", 1) for text in args.models):
        if name not in rows:
            rows[name] = measure(embedlm.load(folder), args.data)
            args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps({task: round(x, 4) for task, x in rows[name].items()}))


if __name__ == "__main__":
    main()
