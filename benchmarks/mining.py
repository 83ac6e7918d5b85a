"""Mining: what the filters remove, and speed and memory against sentence-transformers.

    python benchmarks/mining.py filters --data DATA [-k 10] [--max-length 128]
    python benchmarks/mining.py search [--passages 100000] [--queries 10000]
    python benchmarks/mining.py speed [--passages 100000] [--queries 10000] [--tokens 10]
        [--ours auto float32 int8] [--theirs float32 bfloat16] [--threads 1] [--work DIR]
        [--device cuda] [--batch-size 256]

`filters` mines SciFact's training claims that have several relevant abstracts. One is given as the
positive, the others are hidden: each hidden one among the negatives is a false negative. `search`
and `speed` compare with sentence-transformers; see mining_speed.py. Finished rows are kept in --out
and not measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.mining_speed import Contest, measured, search, speed

RULES: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("shift 10", {"filters": {"shift": 10}}),
    ("window 11-100", {"window": "11-100"}),
    ("abs 0.7", {"filters": {"abs": 0.7}}),
    ("margin_pos 0.05", {"filters": {"margin_pos": 0.05}}),
    ("perc_pos 0.95", {"filters": {"perc_pos": 0.95}}),
    ("perc_pos 0.9", {"filters": {"perc_pos": 0.9}}),
    ("perc_pos 0.8", {"filters": {"perc_pos": 0.8}}),
    ("sample 4k", {"sample": 40}),
]


def partly_known(data: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[set[str]]]:
    """Return SciFact's corpus, records with one positive each, and the ids of the hidden ones."""
    from embedlm.evaluation.readers import read_beir

    found = read_beir(Path(data) / "ir_scifact", "train")
    corpus = [{"id": id, "text": text} for id, text in found.documents.items()]
    records, hidden = [], []
    for query, relevant in found.relevant.items():
        first, *others = list(relevant)
        if others:
            positive = {"positives": [found.documents[first]], "positive_ids": [first]}
            records.append({"id": query, "query": found.queries[query], **positive})
            hidden.append(set(others))
    return corpus, records, hidden


def filters(data: str, out: Path, k: int, model: str | None, max_length: int | None) -> None:
    """Print the share of hidden positives among the negatives, by rule."""
    import embedlm

    corpus, records, hidden = partly_known(data)
    embedder = embedlm.load(model, max_length=max_length)
    work = out.with_name(f"{out.name}.work")

    def measure(options: dict[str, Any], miner: Any) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            mined = embedlm.mine(records, corpus, model=miner, k=k, work=work, **options)
            false = [
                len(secret & set(found.get("negative_ids", ())))
                for secret, found in zip(hidden, mined.records or [], strict=True)
            ]
            counts = {"negatives": mined.report["negatives"], "false": sum(false)}
            return {**counts, "missing": mined.report["short"]["missing"]}

        return run

    rows = [(name, measure(options, embedder)) for name, options in RULES]
    rows += [("bm25", measure({}, "bm25")), ("bm25 and model", measure({}, [embedder, "bm25"]))]
    secret = sum(map(len, hidden))
    print(f"{len(records)} claims, {secret} hidden positives, {len(corpus):,} passages, k = {k}")
    print("| rule | negatives | false | share | hidden positives mined | missing |")
    print("|---|---|---|---|---|---|")
    for row in measured(out, rows):
        share = row["false"] / max(1, row["negatives"])
        print(
            f"| {row['name']} | {row['negatives']:,} | {row['false']} | {share:.2%} | "
            f"{row['false'] / secret:.1%} | {row['missing']:,} |"
        )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["filters", "search", "speed"])
    parser.add_argument("--data", default="data")
    parser.add_argument("--model", default=None)
    parser.add_argument("--max-length", type=int, default=None, help="tokens of a passage")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("-k", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=None, help="median of a passage, for speed")
    parser.add_argument("--ours", nargs="+", default=["auto"], help="dtypes of EmbedLM")
    parser.add_argument("--theirs", nargs="+", default=["float32"], help="dtypes of the other side")
    parser.add_argument("--threads", type=int, default=None, help="of each side; None: all")
    parser.add_argument("--device", default="cpu", help="of both sides, for speed")
    parser.add_argument("--batch-size", type=int, default=32, help="of the other side, for speed")
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps what was mined")
    parser.add_argument("--out", type=Path, default=Path("mining.jsonl"))
    options = parser.parse_args()
    start = time.perf_counter()
    if options.what == "filters":
        filters(options.data, options.out, options.k or 10, options.model, options.max_length)
    elif options.what == "search":
        search(options.passages, options.queries, options.out, options.threads)
    else:
        size = options.passages, options.queries, options.tokens
        sides = options.ours, options.theirs, options.threads, options.device, options.batch_size
        contest = Contest(*size, options.k or 5, *sides)
        speed(contest, options.out, options.work)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
