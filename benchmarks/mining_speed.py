"""What `mining.py search` and `mining.py speed` run: both sides, each in a process of its own.

`search` finds the 60 nearest of random vectors, once by EmbedLM's blocks and once as
sentence-transformers' `mine_hard_negatives` does (the scores of up to 16,384 queries at once, then
torch.topk). `speed` mines random sentences with the built-in model, by `embedlm.mine` and by
`mine_hard_negatives` (which needs datasets), with the same weights: first from texts, then with the
vectors in the cache, which leaves the search.

`--ours` and `--theirs` name dtypes; `auto` is what a side takes by itself. The model is kept in
bfloat16. EmbedLM runs it so where that is fast, else in float32. sentence-transformers runs it so
everywhere and advises float32 on a CPU, which is therefore what it is measured in if not told
otherwise. Of `mine_hard_negatives`' candidates the first 51 are looked at, as is its default.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["Clock", "Contest", "measured", "search", "speed"]

WIDTH, DEPTH = 384, 60
"""Width of random vectors, and how many of the nearest are sought."""
ROOT = Path(__file__).parent.parent

OURS = """
import json, sys
from pathlib import Path
from benchmarks.contender import peak_mb
from benchmarks.mining_speed import Clock
import embedlm
folder, k, dtype = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
model = embedlm.load(folder / "model", dtype=dtype, device=sys.argv[4])
times = []
for run in range(2):
    with Clock(times):
        embedlm.mine(folder / "records.jsonl", folder / "corpus.jsonl", model=model, k=k,
            filters={"perc_pos": 0.95}, work=folder / f"ours-{dtype}-work", show_progress=False,
            output=folder / f"ours-{dtype}-{run}.jsonl", form="sentence-transformers")
print(json.dumps({"times": times, "peak": peak_mb(), "dtype": str(model.backbone.dtype)}))
"""
THEIRS = """
import json, sys
from pathlib import Path
from benchmarks.contender import peak_mb
from benchmarks.mining_speed import Clock
import datasets
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives
folder, k, dtype = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
model = SentenceTransformer(
    str(folder / "model"), device=sys.argv[4], model_kwargs={"dtype": dtype})
read = lambda name: [json.loads(line) for line in (folder / name).open()]
times = []
for run in range(2):
    with Clock(times):
        records, texts = read("records.jsonl"), [one["text"] for one in read("corpus.jsonl")]
        pairs = datasets.Dataset.from_dict({"anchor": [one["query"] for one in records],
            "positive": [one["positives"][0] for one in records]})
        found = mine_hard_negatives(pairs, model, corpus=texts, num_negatives=k,
            relative_margin=0.05, batch_size=int(sys.argv[5]),
            cache_folder=str(folder / f"theirs-{dtype}-cache"), verbose=False)
        found.to_json(str(folder / f"theirs-{dtype}-{run}.jsonl"))
used = str(next(model.parameters()).dtype)
print(json.dumps({"times": times, "peak": peak_mb(), "dtype": used}))
"""
OUR_SEARCH = """
import json, sys
from pathlib import Path
import numpy as np
from benchmarks.contender import peak_mb
from benchmarks.mining_speed import Clock
from embedlm.mining.dense import VectorFile, nearest, prepared
folder, k, times = Path(sys.argv[1]), int(sys.argv[2]), []
q = np.load(folder / "q.npy")
before = peak_mb()
with Clock(times):
    places = np.concatenate([
        nearest(prepared(q[at:at + 2048], "cosine"), VectorFile(folder / "d.npy"), k, "cosine")[0]
        for at in range(0, len(q), 2048)])
np.save(folder / "ours.npy", places)
print(json.dumps({"times": times, "before": before, "peak": peak_mb()}))
"""
THEIR_SEARCH = """
import json, sys
from pathlib import Path
import numpy as np, torch
from benchmarks.contender import peak_mb
from benchmarks.mining_speed import Clock
from embedlm.mining.dense import nearest
from sentence_transformers.util import cos_sim
folder, k, times = Path(sys.argv[1]), int(sys.argv[2]), []
q = np.load(folder / "q.npy")
before = peak_mb()
with Clock(times):
    d = torch.as_tensor(np.load(folder / "d.npy"))
    places = torch.cat([torch.topk(cos_sim(q[at:at + 16384], d), k=k, dim=1)[1]
        for at in range(0, len(q), 16384)])
np.save(folder / "theirs.npy", places.numpy())
print(json.dumps({"times": times, "before": before, "peak": peak_mb()}))
"""


class Clock:
    """Adds the seconds of a block to a list, and its seconds of CPU."""

    def __init__(self, times: list[tuple[float, float]]) -> None:
        self.times = times
        self.start = 0.0, 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        wall, cpu = self.start
        self.times.append((time.perf_counter() - wall, time.process_time() - cpu))


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


def contender(
    program: str,
    folder: Path,
    k: int,
    dtype: str = "",
    threads: int | None = None,
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what a process measures of itself."""
    environment = dict(os.environ)
    if threads is not None:  # of products of matrices, and of tokenizers
        names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
        environment |= dict.fromkeys(names, str(threads))
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(k), dtype, *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def search(passages: int, queries: int, out: Path, threads: int | None) -> None:
    """Print seconds and megabytes of the search alone, and how many of the nearest agree."""
    import numpy as np

    size = f"{passages}x{queries}"
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for file, count in (("d.npy", passages), ("q.npy", queries)):
            np.save(folder / file, rng.standard_normal((count, WIDTH), np.float32))
        programs = {"embedlm": OUR_SEARCH, "sentence-transformers": THEIR_SEARCH}
        rows = [
            (f"search {name} {size}", partial(contender, program, folder, DEPTH, "", threads))
            for name, program in programs.items()
        ]
        print("| search, passages x queries | s | CPU s | peak MB | above imports, MB |")
        print("|---|---|---|---|---|")
        for row in measured(out, rows):
            ((wall, cpu),), more = row["times"], row["peak"] - row["before"]
            print(f"| {row['name']} | {wall:.1f} | {cpu:.1f} | {row['peak']:.0f} | {more:.0f} |")
        both = [folder / "ours.npy", folder / "theirs.npy"]
        if all(path.is_file() for path in both):
            ours, theirs = map(np.load, both)
            print(f"equal places: {(ours == theirs).mean():.6f}")


# -- from texts -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contest:
    """What is mined, and by whom."""

    passages: int
    queries: int
    tokens: int | None
    """The median length of a passage; None: sentences of up to 40 tokens, most of them of 40."""
    k: int
    ours: Sequence[str]
    theirs: Sequence[str]
    threads: int | None
    device: str = "cpu"
    batch_size: int = 32
    """Of the other side."""

    @property
    def size(self) -> str:
        """Return what rows are of."""
        tokens = "" if self.tokens is None else f", {self.tokens} tokens"
        return f"{self.passages}x{self.queries}{tokens}"

    def sides(self) -> Iterator[tuple[str, str, str]]:
        """Yield the name, the program and the file of triplets of each side."""
        for side, program, dtypes, file in (
            ("embedlm", OURS, self.ours, "ours"),
            ("sentence-transformers", THEIRS, self.theirs, "theirs"),
        ):
            for dtype in dtypes:
                yield f"{side} {dtype}", program, f"{file}-{dtype}-0.jsonl"


def write_set(folder: Path, contest: Contest) -> None:
    """Write a model, a corpus of distinct sentences, and records whose positive is one of them."""
    import embedlm
    from benchmarks.shape import mixed_texts

    model, median = embedlm.load(), contest.tokens
    model.save_pretrained(folder / "model")
    tokenizer = model.tokenizer
    if median is None:
        texts = mixed_texts(tokenizer, contest.passages, 8, 40)
    else:
        high = 4 * median
        texts = mixed_texts(tokenizer, contest.passages, 4, high, median=median, spread=0.4)
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    step = max(1, contest.passages // contest.queries)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for number in range(contest.queries):
            text = texts[number * step % contest.passages]
            query = " ".join(text.split()[: max(3, len(text.split()) // 2)])
            file.write(json.dumps({"query": query, "positives": [text]}) + "\n")


def triplets(path: Path) -> set[tuple[str, str, str]]:
    """Return the triplets of a file."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {(row["anchor"], row["positive"], row["negative"]) for row in rows}


def mined(contest: Contest, folder: Path, name: str, program: str, file: str) -> dict[str, Any]:
    """Measure one side, from nothing."""
    for left in folder.glob(f"{file.removesuffix('-0.jsonl')}-*"):  # of a run that was stopped
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    more = contest.device, str(contest.batch_size)
    return contender(program, folder, contest.k, name.split()[-1], contest.threads, more)


def speed(contest: Contest, out: Path, work: Path | None) -> None:
    """Print seconds, seconds of CPU and megabytes of each side, and the triplets in common."""
    with tempfile.TemporaryDirectory() if work is None else nullcontext(work) as name:
        folder = Path(name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            (f"{name} {contest.size}", partial(mined, contest, folder, name, *side))
            for name, *side in contest.sides()
        ]
        missing = {name for name, _ in rows} - kept_rows(out).keys()
        if missing and not (folder / "records.jsonl").is_file():
            write_set(folder, contest)
        print(
            "| miner, passages x queries | runs in | s from texts | CPU s | s with vectors | CPU s "
            "| peak MB |"
        )
        print("|---|---|---|---|---|---|---|")
        for row in measured(out, rows):
            (whole, cpu), (again, cpu_again) = row["times"]
            print(
                f"| {row['name']} | {row['dtype'].removeprefix('torch.')} | {whole:.1f} | "
                f"{cpu:.1f} | {again:.1f} | {cpu_again:.1f} | {row['peak']:.0f} |",
                flush=True,
            )
        in_common(folder, contest)


def in_common(folder: Path, contest: Contest) -> None:
    """Print how many triplets each two sides have, and how many are of both."""
    found = {
        name: triplets(folder / file)
        for name, _, file in contest.sides()
        if (folder / file).is_file()
    }
    names = list(found)
    for at, name in enumerate(names):
        for other in names[at + 1 :]:
            ours, theirs = found[name], found[other]
            both = len(ours & theirs)
            print(f"triplets: {name} {len(ours):,}, {other} {len(theirs):,}, in both {both:,}")
