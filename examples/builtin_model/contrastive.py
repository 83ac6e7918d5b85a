"""Tune the built-in model further on pairs, and score it on dev sets: the trial of a last stage.

    python contrastive.py DATA -o WORK [--steps 150] [--learning-rate 1e-4]

InfoNCE with the batch's other passages as negatives, on titles with their paragraphs and SciFact's
training claims with their abstracts (the claims of the dev set are left out); an adapter, so that
the stage stays light. Both parts are marked as fit to ship. What it gave is in README.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from score import banking, read, scifact, sts
from texts import DEV_CLAIMS

import embedlm


def write_claims(data: Path, out: Path) -> Path:
    """Write the training claims with their abstracts, but for those of the dev set."""
    folder = data / "ir_scifact"
    claims = {r["_id"]: r["text"] for r in read(folder / "queries_train.jsonl.gz")[:-DEV_CLAIMS]}
    corpus = {r["_id"]: f"{r['title']} {r['text']}" for r in read(folder / "corpus.jsonl.gz")}
    file = out / "claims.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for row in read(folder / "qrels_train.jsonl.gz"):
            if row["q"] in claims:
                pair = {"query": claims[row["q"]], "positive": corpus[row["d"]]}
                lines.write(json.dumps(pair) + "\n")
    return file


def write_titles(data: Path, out: Path, count: int) -> Path:
    """Write some titles with their paragraphs, evenly from the whole file."""
    file = out / "titles.jsonl"
    with gzip.open(data / "wiki_pairs/pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    chosen = [rows[at] for at in np.linspace(0, len(rows) - 1, count).astype(int)]
    with file.open("w", encoding="utf-8") as written:
        for row in chosen:
            written.write(json.dumps({"query": row["q"], "positive": row["d"]}) + "\n")
    return file


def plan_of(sources: list[Path], steps: int, rate: float) -> dict[str, Any]:
    """Return the plan of the stage."""
    stage = {
        "name": "contrastive",
        "objective": [{"kind": "info_nce", "temperature": 0.05}],
        "data": [{"source": str(source)} for source in sources],
        "train": "adapter",
        "adapter": {"rank": 16, "alpha": 32},
        "batching": {"size": 64, "group_size": 1},
        "optimizer": {"learning_rate": rate, "steps": steps, "warmup": 0.1},
        "max_length": 128,
        "keep": "last",
    }
    return {"model": "builtin", "stages": [stage], "checkpoint_every": 25, "log_every": 25}


def scores(model: Any, data: Path) -> str:
    """Return a model's scores on the dev sets, as a row of a table."""

    def encoded(texts: list[str]) -> Any:
        return model.encode(texts, max_length=256, show_progress=False)

    found = (score(encoded, data) for score in (sts, scifact, banking))  # type: ignore[arg-type]
    return " | ".join(f"{one:.4f}" for one in found)


def main() -> None:
    """Score the model, tune it, and score it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    chosen = parser.parse_args()
    out: Path = chosen.output
    out.mkdir(parents=True, exist_ok=True)
    print("| STS-B dev | SciFact dev | Banking77 dev |")
    print("before:", scores(embedlm.load(), chosen.data), flush=True)
    sources = [write_claims(chosen.data, out), write_titles(chosen.data, out, 20_000)]
    plan = plan_of(sources, chosen.steps, chosen.learning_rate)
    embedlm.train(plan, out / "tuned")
    print("after:", scores(embedlm.load(out / "tuned" / "model"), chosen.data), flush=True)


if __name__ == "__main__":
    main()
