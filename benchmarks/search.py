"""Search: quality of each mode with the built-in model, size and speed of 100,000 vectors.

    python benchmarks/search.py quality --data DATA --work DIR
    python benchmarks/search.py latency --work DIR
    python benchmarks/search.py latency --work DIR --first binary

What is finished lies in DIR and is not done again: an index goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import embedlm
from embedlm.evaluation.metrics import ndcg
from embedlm.evaluation.readers import Judged, read_beir
from embedlm.evaluation.statistics import bootstrap, mean_of
from embedlm.jobs.json_files import write_json
from embedlm.search import EdgeStore, ExactStore, FirstStage, Index, build_index, fuse
from embedlm.search.fusion import ordered

TASKS: dict[str, tuple[str | None, list[tuple[str, str | None]]]] = {
    "scifact": ("validation", [("scifact", "train")]),
    "cranfield": (None, [("adi", None), ("cisi", None)]),
}
"""The split that is reported of each set, and the queries by which a fusion is chosen for it."""
DEPTHS = (100, 200, 1000)
"""Documents of each ranking that are fused."""
FUSIONS: dict[str, tuple[str, dict[str, int]]] = {
    "rrf": ("rrf", {}),
    "rrf, k = 10": ("rrf", {"k": 10}),
    "rrf, k = 1": ("rrf", {"k": 1}),
    "min_max": ("min_max", {}),
    "dbsf": ("dbsf", {}),
}
COUNT, WIDTH, CENTRES, LATENT = 100_000, 384, 2_000, 40

Values = npt.NDArray[np.float64]
"""nDCG@10 of each query."""
Runs = dict[str, dict[str, dict[str, float]]]
"""The scores of documents by query and mode."""


def interval(values: Values) -> tuple[float, float]:
    """Return the 95 % interval of a mean over queries, by bootstrap."""
    drawn = bootstrap(mean_of(values), len(values))
    return drawn.low, drawn.high


def indexed(task: str, data: Path, work: Path, model: embedlm.Embedder) -> None:
    """Index a corpus, unless an earlier run has."""
    report = build_index(data / f"ir_{task}", work / f"{task}.index", model, show_progress="lines")
    if report.added:
        share = report.embedding / report.seconds
        print(f"{task}: {report.added} documents in {report.seconds:.0f} s, {share:.0%} embedding")


def rankings(name: str, split: str | None, data: Path, work: Path, model: embedlm.Embedder) -> Runs:
    """Return the best documents of each query by dense vectors and by BM25; kept in a file."""
    file = work / f"{name}-{split}.json"
    if not file.is_file():
        indexed(name, data, work, model)
        queries = read_beir(data / f"ir_{name}", split).queries
        with Index.open(work / f"{name}.index", model) as index:
            runs = {
                query: {
                    mode: {str(hit.id): hit.score for hit in index.search(text, 1000, mode=mode)}
                    for mode in ("dense", "bm25")
                }
                for query, text in queries.items()
            }
        write_json(file, runs)
    found: Runs = json.loads(file.read_text(encoding="utf-8"))
    return found


def scores(
    runs: Runs, data: Judged, method: str, depth: int, options: Mapping[str, int], dense: float
) -> Values:
    """Return nDCG@10 of each query, dense vectors having a share of the weight."""
    found = []
    for query, both in runs.items():
        pair = [both["dense"], both["bm25"]]
        fused = fuse(pair, method, [dense, 1 - dense], depth=depth, **options)
        ranked = [document for document, _ in ordered(fused)[:10]]
        found.append(ndcg(ranked, data.relevant[query]))
    return np.array(found)


def compared(runs: Runs, data: Judged) -> dict[str, Values]:
    """Return nDCG@10 of each query by each ranking alone and by each fusion of equal weights."""
    alone = {"dense": 1.0, "bm25": 0.0}
    values = {
        name: scores(runs, data, "rrf", DEPTHS[-1], {}, share) for name, share in alone.items()
    }
    for depth in DEPTHS:
        for name, (method, options) in FUSIONS.items():
            values[f"{name}, {depth}"] = scores(runs, data, method, depth, options, 0.5)
    return values


def quality(data: Path, work: Path, tasks: Sequence[str]) -> None:
    """Print nDCG@10 of rankings and fusions, first on the queries by which one may be chosen."""
    model = embedlm.load()
    for task in tasks:
        split, dev = TASKS[task]
        for name, part in [*dev, (task, split)]:
            judged = read_beir(data / f"ir_{name}", part)
            values = compared(rankings(name, part, data, work, model), judged)
            for row, one in values.items():
                low, high = interval(one)
                cells = [name, row, f"{one.mean():.3f}", f"{low:.3f} to {high:.3f}"]
                for other in ("dense", "bm25") if "," in row else ():
                    low, high = interval(one - values[other])
                    gain = (one - values[other]).mean()
                    cells.append(f"{gain:+.3f} ({low:+.3f} to {high:+.3f})")
                print(f"| {' | '.join(cells)} |", flush=True)


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


def megabytes(what: str) -> float:
    """Return this process's memory of a kind: RssAnon, its own, or RssFile, of mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"this system does not tell {what}")


def built(path: Path, first: FirstStage | None, vectors: npt.NDArray[np.float32]) -> EdgeStore:
    """Return the store at a path, which is made if it is not there."""
    done = path.with_suffix(".json")
    if not done.is_file():
        shutil.rmtree(path, ignore_errors=True)
        start = time.perf_counter()
        store = EdgeStore(path, first=first)
        store.add([f"{i:06d}" for i in range(len(vectors))], {"dense": vectors})
        added = time.perf_counter() - start
        store.optimize()
        whole = time.perf_counter() - start
        store.close()
        write_json(done, {"add": added, "optimize": whole - added})
    return EdgeStore.open(path)


def latency(work: Path, stage: str | None) -> None:
    """Print the size, p50, p99 and recall@10 of 100,000 vectors in an index of Qdrant Edge."""
    first = None if stage is None else FirstStage.parse(stage)
    vectors, queries = synthetic(COUNT, 2), synthetic(200, 3)
    ids = [f"{i:06d}" for i in range(COUNT)]
    before = {what: megabytes(what) for what in ("RssAnon", "RssFile")}
    path = work / f"edge-{(stage or 'whole').replace(':', '-')}"
    store = built(path, first, vectors)
    seconds = json.loads(path.with_suffix(".json").read_text())
    store.search("dense", queries)  # once, so that the files are in memory
    found = store.search("dense", queries)
    times = milliseconds(lambda query: store.search("dense", query), queries)
    memory = {what: megabytes(what) - held for what, held in before.items()}
    exact = ExactStore()
    exact.add(ids, {"dense": vectors})
    true = [{m.id for m in matches} for matches in exact.search("dense", queries)]
    hits = sum(len({m.id for m in a} & b) for a, b in zip(found, true, strict=True))
    plain = milliseconds(lambda query: exact.search("dense", query), queries[:20])
    print(
        f"first stage {stage}: add {seconds['add']:.1f} s, optimize {seconds['optimize']:.0f} s, "
        f"disk {store.size() / 1e6:.0f} MB, memory {memory['RssAnon']:.0f} MB and "
        f"{memory['RssFile']:.0f} MB of mapped files, p50 {np.median(times):.2f} ms, "
        f"p99 {np.percentile(times, 99):.2f} ms, {1000 / np.mean(times):.0f} queries a second, "
        f"recall@10 {hits / (10 * len(queries)):.4f}; exact store: p50 {np.median(plain):.1f} ms"
    )
    store.close()


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["quality", "latency"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(TASKS), help="of quality")
    parser.add_argument("--first", help="of latency: the first stage, binary or short:DIM")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "latency":
        latency(options.work, options.first)
    elif options.data is None:
        parser.error("quality needs --data")
    else:
        quality(options.data, options.work, options.tasks.split(","))


if __name__ == "__main__":
    main()
