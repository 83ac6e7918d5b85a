"""Mined negatives against in-batch negatives alone: the same base, claims, steps and learning rate.

    python benchmarks/negatives.py --data DATA -o DIR [-m MODEL] [--steps N] [--miner MODEL|bm25]
    python benchmarks/negatives.py --data DATA -o DIR --whole [--perc-pos 0.9]

SciFact's training claims are trained on, each with its abstract (and mined ones beside it), cut to
64 tokens. Both tuned models and the base are scored on SciFact's validation claims, of which none
was trained on, in a sample of the abstracts, cut to 96 tokens. With `--whole` they are scored in
all abstracts, and 128 and 256 tokens are read of one. Negatives are mined among all abstracts.
What a stopped run has finished in DIR is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

SUITE = """tasks:
  scifact_{count}:
    use: retrieval/scifact
    summary: SciFact's validation claims in {count} of its abstracts.
    documents: {count}
"""
NEGATIVES, BATCH = 3, 16
ABSTRACTS = {False: 600, True: 5183}
"""Searched, in the sample and in the whole corpus."""
TOKENS = {False: (64, 96), True: (128, 256)}
"""Read of an abstract in training and in search, for the same."""


def write_claims(data: Path, out: Path) -> Path:
    """Write the training claims with all of their abstracts; return the file."""
    from embedlm.data import read_rows

    folder = data / "ir_scifact"
    corpus, queries, qrels = (
        [row for _, row in read_rows(folder / f"{name}.jsonl.gz")]
        for name in ("corpus", "queries_train", "qrels_train")
    )
    texts = {row["_id"]: f"{row['title']} {row['text']}" for row in corpus}
    answers: dict[str, list[str]] = {}
    for row in qrels:
        answers.setdefault(row["q"], []).append(row["d"])
    lines = [
        {
            "query": row["text"],
            "positives": [texts[id] for id in answers[row["_id"]]],
            "positive_ids": answers[row["_id"]],
        }
        for row in queries
        if row["_id"] in answers
    ]
    file = out / "claims.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def plan_of(records: Path, negatives: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the plan of a run."""
    optimizer = {"learning_rate": chosen.learning_rate, "steps": chosen.steps, "warmup": 0.1}
    stage = {
        "name": "claims",
        "objective": [{"kind": "info_nce", "temperature": 0.05}],
        "data": [{"source": str(records)}],
        "train": "adapter",
        "adapter": {"rank": 16, "alpha": 32},
        "batching": {"size": BATCH, "group_size": 1 + negatives},
        "optimizer": optimizer,
        "max_length": {"query": 48, "document": TOKENS[chosen.whole][0]},
        "keep": "last",
    }
    return {
        "model": chosen.model,
        "stages": [stage],
        "checkpoint_every": 10,
        "log_every": 5,
        "seed": 0,
    }


def main() -> None:
    """Mine, train twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("-m", "--model", default="builtin")
    parser.add_argument("--miner", default="bm25")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--perc-pos", type=float, default=0.95, help="of a positive's score")
    parser.add_argument("--whole", action="store_true", help="search all abstracts")
    chosen = parser.parse_args()

    import embedlm
    from embedlm.evaluation.comparison import compare

    out: Path = chosen.output
    out.mkdir(parents=True, exist_ok=True)
    claims, mined, suite = write_claims(chosen.data, out), out / "mined.jsonl", out / "suite.yaml"
    suite.write_text(SUITE.format(count=ABSTRACTS[chosen.whole]), encoding="utf-8")
    corpus = chosen.data / "ir_scifact" / "corpus.jsonl.gz"
    filters = {"perc_pos": chosen.perc_pos}
    report = embedlm.mine(
        claims, corpus, model=chosen.miner, output=mined, k=NEGATIVES, filters=filters
    ).report
    print(f"{report['negatives']:,} negatives for {report['written']:,} claims", flush=True)
    models = {"base": None if chosen.model == "builtin" else chosen.model}
    for name, negatives in (("in-batch", 0), ("mined", NEGATIVES)):
        embedlm.train(plan_of(mined, negatives, chosen), out / name)
        models[name] = str(out / name / "model")
    options: dict[str, Any] = {
        "cache": out / "results",
        "encode": {"max_length": TOKENS[chosen.whole][1]},
    }
    results = {
        name: embedlm.evaluate(model, suite=suite, data=chosen.data, **options)
        for name, model in models.items()
    }
    for a, b in (("base", "in-batch"), ("base", "mined"), ("in-batch", "mined")):
        (row,) = compare(results[a], results[b], (a, b)).tasks
        low, high = row.interval
        print(
            f"{a} -> {b}: {row.metric} {row.a:.4f} -> {row.b:.4f}, difference "
            f"{row.difference:+.4f} [{low:+.4f}, {high:+.4f}], p {row.p:.4f}, {row.n} claims"
        )


if __name__ == "__main__":
    main()
