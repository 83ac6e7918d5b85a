"""Texts a second on a GPU: EmbedLM plain, compiled and in 8 bits; the peer at its best batch size.

    python benchmarks/gpu_speed.py [--count 4096] [--batch-sizes 128,256,512,1024] [--shape 7B]
        [--only "mixed lengths"] [--kinds compiled,int8,fp8] [--repeats 3]

All run in one process on one card, one after the other, on the workloads of encode.py, which
describes them. Medians of the repeats, after a warm-up on a few texts; of the other side each batch
size is shown, and the best one counts.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.contender import Vectors, run_embedlm, run_peer
from benchmarks.encode import PLAIN, WORKLOADS, ceiling, smallest_cosine, workload
from benchmarks.shape import SHAPES, build_model, flops_per_token

WARM_UP = 64


def measured(call: Callable[[int], Vectors], count: int, repeats: int) -> tuple[float, Vectors]:
    """Return the median seconds of a workload, and its vectors."""
    vectors, times = call(WARM_UP), []
    for _ in range(repeats):
        start = time.perf_counter()
        vectors = call(count)  # they come back to the host: nothing is left to be waited for
        times.append(time.perf_counter() - start)
    return statistics.median(times), vectors


class Table:
    """The rows of a workload, printed as they come."""

    def __init__(self, name: str, work: dict[str, Any], flops: float) -> None:
        self.count, self.flops = len(work["texts"]), flops
        self.best: float | None = None
        """Seconds of the best of the other side."""
        self.vectors: Vectors | None = None
        print(f"\n{name}: {self.count} texts, {work['tokens']} tokens of prompts\n")
        print("| | s | texts/s | share of the ceiling | cosine | times as fast |")
        print("|---|---|---|---|---|---|", flush=True)

    def row(self, name: str, seconds: float, vectors: Vectors) -> None:
        """Print a row; the other side's must come first."""
        self.vectors = vectors if self.vectors is None else self.vectors
        ratio = f"{self.best / seconds:.2f}" if self.best else ""
        print(
            f"| {name} | {seconds:.3f} | {self.count / seconds:,.0f} | {self.flops / seconds:.0%} "
            f"| {smallest_cosine(self.vectors, vectors):.5f} | {ratio} |",
            flush=True,
        )


def contest(folder: Path, name: str, rate: float, args: argparse.Namespace) -> None:
    """Measure both sides on a workload."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    work = workload(name, tokenizer, args.count)
    work["tokens"] = sum(len(tokenizer(one)["input_ids"]) for row in work["strings"] for one in row)
    table = Table(name, work, work["tokens"] * flops_per_token(folder) / rate)
    found: dict[str, float] = {}
    for size in args.batch_sizes:
        peer = run_peer(str(folder), work, args.device, size)
        seconds, vectors = measured(peer, args.count, min(args.repeats, 2))
        found[f"sentence-transformers, batch {size}"] = seconds
        table.row(f"sentence-transformers, batch {size}", seconds, vectors)
        del peer
        emptied()
    table.best = min(found.values(), default=None)
    for kind in ("", *args.kinds):
        start = time.perf_counter()
        ours = run_embedlm(str(folder), work, args.device, kind)
        ready = time.perf_counter() - start
        seconds, vectors = measured(ours, args.count, args.repeats)
        note = f" (ready after {ready:.0f} s)" if "compiled" in kind else ""
        table.row(f"EmbedLM {kind}{note}".strip(), seconds, vectors)
        del ours
        emptied()


def emptied() -> None:
    """Free what the side before has held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="0.6B")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--only", choices=list(WORKLOADS), nargs="+", default=list(PLAIN[:2]))
    parser.add_argument("--model", type=Path, help="folder to build the model in")
    parser.add_argument("--kinds", type=lambda given: [one for one in given.split(",") if one])
    parser.add_argument(
        "--batch-sizes", type=lambda given: [int(one) for one in given.split(",") if one]
    )
    parser.set_defaults(kinds=["compiled"], batch_sizes=[128, 256, 512, 1024])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.model or Path(temporary)) / "model"
        build_model(folder, layers=args.layers, shape=args.shape)
        rate = ceiling(args.device)
        print(f"bfloat16 matrix products: {rate / 1e12:.0f} TFLOP/s")
        for name in args.only:
            contest(folder, name, rate, args)


if __name__ == "__main__":
    main()
