"""Search: quality of each mode with the built-in model, latency and recall over 100,000 vectors.

    python benchmarks/search.py quality --data DATA --work DIR
    python benchmarks/search.py latency --work DIR

What is finished lies in DIR and is not done again: an index goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

import embedlm
from embedlm.evaluation.metrics import ndcg
from embedlm.evaluation.readers import Judged, read_beir
from embedlm.evaluation.statistics import bootstrap, mean_of
from embedlm.search import EdgeStore, ExactStore, Index, build_index, fuse
from embedlm.search.fusion import ordered

TASKS = {"scifact": "validation", "cranfield": None}
DEPTH = 100
"""Documents of each ranking that are fused, as a search does."""
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
COUNT, WIDTH, CENTRES, LATENT = 100_000, 384, 2_000, 40


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over queries, by bootstrap."""
    drawn = bootstrap(mean_of(values), len(values))
    return drawn.low, drawn.high


Runs = dict[str, dict[str, float]]
"""The ranking of each head for one query."""


def rankings(index: Index, queries: Mapping[str, str]) -> dict[str, Runs]:
    """Return the best documents of each query by dense vectors and by BM25."""
    return {
        query: {
            mode: {str(hit.id): hit.score for hit in index.search(text, DEPTH, mode=mode)}
            for mode in ("dense", "bm25")
        }
        for query, text in queries.items()
    }


def scores(
    runs: Mapping[str, Runs], data: Judged, method: str, share: float
) -> npt.NDArray[np.float64]:
    """Return nDCG@10 of each query, dense vectors having a share of the weight."""
    found = []
    for query, both in runs.items():
        fused = fuse([both["dense"], both["bm25"]], method, [share, 1 - share])
        ranked = [document for document, _ in ordered(fused)[:10]]
        found.append(ndcg(ranked, data.relevant[query]))
    return np.array(found)


def chosen_weight(index: Index, data: Judged) -> tuple[str, float]:
    """Return the fusion and the share of dense vectors that are best on training queries."""
    runs = rankings(index, data.queries)
    tried = {
        (method, share): float(scores(runs, data, method, share).mean())
        for method in ("rrf", "min_max", "dbsf")
        for share in SHARES
    }
    best = max(tried, key=lambda pair: tried[pair])
    print(f"best on the training queries: {best[0]}, dense {best[1]} ({tried[best]:.3f})")
    return best


def quality(data: Path, work: Path) -> None:
    """Print nDCG@10 of each ranking and fusion; SciFact's training queries choose weights."""
    model = embedlm.load()
    weight = None
    for task, split in TASKS.items():
        folder = data / f"ir_{task}"
        report = build_index(folder, work / f"{task}.index", model, show_progress="lines")
        share = report.embedding / report.seconds
        print(
            f"{task}: {report.documents} documents in {report.seconds:.1f} s, {share:.0%} of it "
            "embedding (0 where an earlier run has embedded)"
        )
        retrieval = read_beir(folder, split)
        with Index.open(work / f"{task}.index", model) as index:
            if weight is None:
                weight = chosen_weight(index, read_beir(folder, "train"))
            runs = rankings(index, retrieval.queries)
        rows = {
            "dense": ("rrf", 1.0),
            "bm25": ("rrf", 0.0),
            **{f"hybrid, {one}": (one, 0.5) for one in ("rrf", "min_max", "dbsf")},
            f"hybrid, {weight[0]}, dense {weight[1]}": weight,
        }
        values = {name: scores(runs, retrieval, *row) for name, row in rows.items()}
        for name, one in values.items():
            low, high = interval(one)
            print(f"| {task} | {name} | {one.mean():.3f} | {low:.3f} to {high:.3f} |")
        for name in list(rows)[2:]:
            for other in ("dense", "bm25"):
                low, high = interval(values[name] - values[other])
                gain = (values[name] - values[other]).mean()
                print(f"| {task} | {name} less {other} | {gain:+.3f} | {low:+.3f} to {high:+.3f} |")


def synthetic(count: int, seed: int) -> npt.NDArray[np.float32]:
    """Return clustered vectors, as texts of some topics have."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, LATENT))
    basis = np.random.default_rng(1).standard_normal((LATENT, WIDTH))
    rng = np.random.default_rng(seed)
    points = centres[rng.integers(0, CENTRES, count)] + rng.standard_normal((count, LATENT)) * 0.5
    return np.asarray(points @ basis, dtype=np.float32)


def milliseconds(call: Callable[[npt.NDArray[np.float32]], object], queries: object) -> list[float]:
    """Return how long a call takes for each query, one at a time."""
    times = []
    for query in np.asarray(queries):
        start = time.perf_counter()
        call(query[None])
        times.append(1000 * (time.perf_counter() - start))
    return times


def latency(work: Path) -> None:
    """Print p50, p99 and recall@10 over 100,000 vectors."""
    path = work / "edge"
    vectors, queries = synthetic(COUNT, 2), synthetic(200, 3)
    ids = [f"{i:06d}" for i in range(COUNT)]
    if not (work / "built.json").is_file():
        start = time.perf_counter()
        store = EdgeStore(path)
        store.add(ids, {"dense": vectors})
        added = time.perf_counter() - start
        store.optimize()
        store.close()
        facts = {"add": added, "optimize": time.perf_counter() - start - added}
        (work / "built.json").write_text(json.dumps(facts))
    print((work / "built.json").read_text())
    exact = ExactStore()
    exact.add(ids, {"dense": vectors})
    true = [{m.id for m in matches} for matches in exact.search("dense", queries)]
    store = EdgeStore.open(path)
    store.search("dense", queries)  # once, so that the files are in memory
    found = store.search("dense", queries)
    hits = sum(len({m.id for m in a} & b) for a, b in zip(found, true, strict=True))
    times = milliseconds(lambda query: store.search("dense", query), queries)
    plain = milliseconds(lambda query: exact.search("dense", query), queries[:20])
    print(
        f"edge: p50 {np.median(times):.2f} ms, p99 {np.percentile(times, 99):.2f} ms, recall@10 "
        f"{hits / (10 * len(queries)):.4f}; exact store: p50 {np.median(plain):.1f} ms"
    )
    store.close()


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["quality", "latency"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "latency":
        latency(options.work)
    elif options.data is None:
        parser.error("quality needs --data")
    else:
        quality(options.data, options.work)


if __name__ == "__main__":
    main()
