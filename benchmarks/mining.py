"""Mining: what the filters remove, and speed and memory against sentence-transformers.

    python benchmarks/mining.py filters --data DATA [-k 10] [--max-length 128]
    python benchmarks/mining.py search [--passages 100000] [--queries 10000]
    python benchmarks/mining.py speed [--passages 100000] [--queries 10000]

`filters` mines SciFact's training claims that have several relevant abstracts. One is given as the
positive, the others are hidden: each hidden one among the negatives is a false negative. `search`
finds the 60 nearest of random vectors, once by EmbedLM's blocks and once as `mine_hard_negatives`
does (the scores of up to 16,384 queries at once, then torch.topk). `speed` mines random sentences
with the built-in model, once by `embedlm.mine` and once by sentence-transformers'
`mine_hard_negatives` (which needs datasets) with the same weights, then by `embedlm.mine` with the
layers' products in 8-bit integers, each in a process of its own:
first from texts, then with the vectors in the cache, which leaves the search.
Finished rows are kept in --out and not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

WIDTH, DEPTH = 384, 60
"""Width of random vectors, and how many of the nearest are sought."""
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


def kept_rows(out: Path) -> dict[str, dict[str, Any]]:
    """Return the rows that earlier runs have finished."""
    if not out.is_file():
        return {}
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows}


def measured(
    out: Path, rows: Sequence[tuple[str, Callable[[], dict[str, Any]]]]
) -> Iterator[dict[str, Any]]:
    """Yield each row, measured now or before."""
    done = kept_rows(out)
    for name, measure in rows:
        if name not in done:
            done[name] = {"name": name, **measure()}
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[name]) + "\n")
        yield done[name]


# -- filters ----------------------------------------------------------------------------------


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


# -- speed ------------------------------------------------------------------------------------

OURS = """
import json, sys, time
from pathlib import Path
from benchmarks.contender import peak_mb
import embedlm
folder, k = Path(sys.argv[1]), int(sys.argv[2])
dtype = sys.argv[3]
model = embedlm.load(folder / "model", dtype=dtype, device="cpu")
times = []
for run in range(2):
    start = time.perf_counter()
    embedlm.mine(folder / "records.jsonl", folder / "corpus.jsonl", model=model, k=k,
        filters={"perc_pos": 0.95}, work=folder / "work", output=folder / f"{dtype}{run}.jsonl",
        form="sentence-transformers", show_progress=False)
    times.append(time.perf_counter() - start)
print(json.dumps([*times, peak_mb()]))
"""
THEIRS = """
import json, sys, time
from pathlib import Path
from benchmarks.contender import peak_mb
import datasets
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives
folder, k = Path(sys.argv[1]), int(sys.argv[2])
model = SentenceTransformer(str(folder / "model"), device="cpu",
    model_kwargs={"dtype": "float32"})
times = []
for run in range(2):
    start = time.perf_counter()
    read = lambda name: [json.loads(line) for line in (folder / name).open()]
    records = read("records.jsonl")
    pairs = datasets.Dataset.from_dict({"anchor": [one["query"] for one in records],
        "positive": [one["positives"][0] for one in records]})
    found = mine_hard_negatives(pairs, model, corpus=[one["text"] for one in read("corpus.jsonl")],
        num_negatives=k, relative_margin=0.05, cache_folder=str(folder / "theirs"), verbose=False)
    found.to_json(str(folder / f"theirs{run}.jsonl"))
    times.append(time.perf_counter() - start)
print(json.dumps([*times, peak_mb()]))
"""


OUR_SEARCH = """
import json, sys, time
from pathlib import Path
import numpy as np
from benchmarks.contender import peak_mb
from embedlm.mining.dense import VectorFile, nearest, prepared
folder, k = Path(sys.argv[1]), int(sys.argv[2])
q = np.load(folder / "q.npy")
before = peak_mb()
start = time.perf_counter()
places = np.concatenate([nearest(prepared(q[at:at + 2048], "cosine"), VectorFile(folder / "d.npy"),
    k, "cosine")[0] for at in range(0, len(q), 2048)])
seconds = time.perf_counter() - start
np.save(folder / "ours.npy", places)
print(json.dumps([seconds, before, peak_mb()]))
"""
THEIR_SEARCH = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
from benchmarks.contender import peak_mb
from embedlm.mining.dense import nearest
from sentence_transformers.util import cos_sim
folder, k = Path(sys.argv[1]), int(sys.argv[2])
q = np.load(folder / "q.npy")
before = peak_mb()
start = time.perf_counter()
d = torch.as_tensor(np.load(folder / "d.npy"))
places = torch.cat([torch.topk(cos_sim(q[at:at + 16384], d), k=k, dim=1)[1]
    for at in range(0, len(q), 16384)])
seconds = time.perf_counter() - start
np.save(folder / "theirs.npy", places.numpy())
print(json.dumps([seconds, before, peak_mb()]))
"""


def search(passages: int, queries: int, out: Path) -> None:
    """Print seconds and megabytes of the search alone, and how many of the nearest agree."""
    import numpy as np

    size = f"{passages}x{queries}"
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for file, count in (("d.npy", passages), ("q.npy", queries)):
            np.save(folder / file, rng.standard_normal((count, WIDTH), np.float32))

        def measure(program: str) -> Callable[[], dict[str, Any]]:
            def run() -> dict[str, Any]:
                row = contender(program, folder, DEPTH)
                return {"s": row["whole"], "before": row["search"], "peak": row["peak"]}

            return run

        programs = {"embedlm": OUR_SEARCH, "sentence-transformers": THEIR_SEARCH}
        rows = [(f"search {name} {size}", measure(code)) for name, code in programs.items()]
        print("| search, passages x queries | s | peak MB | above imports, MB |")
        print("|---|---|---|---|")
        for row in measured(out, rows):
            more = row["peak"] - row["before"]
            print(f"| {row['name']} | {row['s']:.1f} | {row['peak']:.0f} | {more:.0f} |")
        both = [folder / "ours.npy", folder / "theirs.npy"]
        if all(path.is_file() for path in both):
            ours, theirs = map(np.load, both)
            print(f"equal places: {(ours == theirs).mean():.6f}")


def write_set(folder: Path, passages: int, queries: int) -> None:
    """Write a model, a corpus of distinct sentences, and records whose positive is one of them."""
    import embedlm
    from benchmarks.shape import mixed_texts

    embedlm.load().save_pretrained(folder / "model")
    texts = mixed_texts(embedlm.load("builtin-base").tokenizer, passages, 8, 40)
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    step = max(1, passages // queries)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for number in range(queries):
            text = texts[number * step % passages]
            query = " ".join(text.split()[: max(3, len(text.split()) // 2)])
            file.write(json.dumps({"query": query, "positives": [text]}) + "\n")


def contender(program: str, folder: Path, k: int, dtype: str = "float32") -> dict[str, Any]:
    """Return the times and the peak memory of a process."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(k), dtype],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    whole, search, peak = json.loads(done.stdout.splitlines()[-1])
    return {"whole": whole, "search": search, "peak": peak}


def triplets(path: Path) -> set[tuple[str, str, str]]:
    """Return the triplets of a file."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {(row["anchor"], row["positive"], row["negative"]) for row in rows}


def speed(passages: int, queries: int, k: int, out: Path) -> None:
    """Print seconds and megabytes of both."""
    size = f"{passages}x{queries}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = {
            "embedlm": (OURS, "float32"),
            "sentence-transformers": (THEIRS, "float32"),
            "embedlm int8": (OURS, "int8"),
        }
        if len(kept_rows(out).keys() & {f"{name} {size}" for name in programs}) < len(programs):
            write_set(folder, passages, queries)
        rows = [
            (f"{name} {size}", partial(contender, program, folder, k, dtype))
            for name, (program, dtype) in programs.items()
        ]
        print("| miner, passages x queries | s from texts | s with vectors | peak MB |")
        print("|---|---|---|---|")
        for row in measured(out, rows):
            print(
                f"| {row['name']} | {row['whole']:.1f} | {row['search']:.1f} | {row['peak']:.0f} |"
            )
        files = [folder / f"{name}0.jsonl" for name in ("float32", "theirs", "int8")]
        if all(path.is_file() for path in files):
            ours, theirs, short = map(triplets, files)
            print(f"triplets: {len(ours)} and {len(theirs)}, {len(ours & theirs)} in both")
            print(f"triplets in int8: {len(short)}, {len(ours & short)} of them in float32, too")


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
    parser.add_argument("--out", type=Path, default=Path("mining.jsonl"))
    options = parser.parse_args()
    start = time.perf_counter()
    if options.what == "filters":
        filters(options.data, options.out, options.k or 10, options.model, options.max_length)
    elif options.what == "search":
        search(options.passages, options.queries, options.out)
    else:
        speed(options.passages, options.queries, options.k or 5, options.out)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
