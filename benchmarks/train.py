"""Contrastive training against sentence-transformers: same model, batch, data and precision.

    python benchmarks/train.py [--pairs 1024] [--steps 3] [--threads 2] [--memory 256,8192]
    python benchmarks/train.py --device cuda --shape 0.6B --chunk 32768 --mini-batch 256

Both sides train the built-in base model (or one of a published shape) on one batch of made-up pairs
of mixed lengths, with cached gradients (GradCache; CachedMultipleNegativesRankingLoss). Each side
runs in its own process, and its first step is not counted. `--memory` measures only EmbedLM's peak
memory, at other batch sizes.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.encode import ceiling, other_work
from benchmarks.shape import SHAPES, build_model, flops_per_token, mixed_texts

LENGTH = 512
CHUNK, MINI_BATCH = 2048, 32
"""Tokens in a chunk, and texts in sentence-transformers' mini-batch, which have about as many."""
RATE = 1e-4


def ours(folder: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train with EmbedLM; return the losses and the seconds of each step."""
    from embedlm.training import train

    times, losses = [time.perf_counter()], []

    def record(kind: str, values: dict[str, Any]) -> None:
        if kind == "step":
            times.append(time.perf_counter())
            losses.append(values["loss"])

    stage = {
        "name": "pairs",
        "objective": [{"kind": "info_nce", "temperature": 0.05}],
        "data": [{"source": str(data)}],
        "batching": {"size": args.pairs, "group_size": 1, "chunk_tokens": args.chunk},
        "optimizer": {
            "steps": args.steps,
            "learning_rate": RATE,
            "schedule": "constant",
            "warmup": 0,
        },
        "max_length": LENGTH,
    }
    plan: dict[str, Any] = {"model": str(folder), "precision": "bfloat16", "stages": [stage]}
    plan["log_every"] = 1
    with tempfile.TemporaryDirectory() as output:
        train(plan, output, device=args.device, on_event=record)
    return {"losses": losses, "seconds": [b - a for a, b in pairwise(times)]}


def theirs(folder: Path, data: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train with sentence-transformers; return the losses and the seconds of each step."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from transformers import TrainerCallback

    logging.disable(logging.WARNING)
    model = SentenceTransformer(str(folder), device=args.device, model_kwargs={"dtype": "float32"})
    model.max_seq_length = LENGTH
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    times: list[float] = []

    class Clock(TrainerCallback):
        """Records the time at the start and after each step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not times:
                times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as output:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output,
                max_steps=args.steps,
                per_device_train_batch_size=args.pairs,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                bf16=True,
                use_cpu=args.device == "cpu",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"anchor": r["q"], "positive": r["d"]} for r in rows]),
            loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.mini_batch),
            callbacks=[Clock()],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "seconds": [b - a for a, b in pairwise(times)]}


def contender(side: str, folder: Path, data: Path, pairs: int, args: Any) -> dict[str, Any]:
    """Run one side in a new process and return what it measured."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    command += ["--data", str(data), "--pairs", str(pairs)]
    for name in ("steps", "threads", "device", "chunk", "mini_batch"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def one_side(args: argparse.Namespace) -> None:
    """Run one side in this process and print what it measured."""
    import torch

    torch.set_num_threads(args.threads)
    run = {"ours": ours, "theirs": theirs}[args.side]
    measured = run(args.folder, args.data, args)
    measured["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(measured))


def write_pairs(folder: Path, target: Path, count: int, high: int = 450) -> int:
    """Write pairs of texts of 4 to `high` tokens; return how many tokens they have in total."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = list(dict.fromkeys(mixed_texts(tokenizer, 3 * count, high=high)))[: 2 * count]
    rows = [{"q": q, "d": d} for q, d in zip(texts[::2], texts[1::2], strict=True)]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sum(min(len(ids), LENGTH) for ids in tokenizer(texts)["input_ids"])


def main() -> None:
    """Measure both sides and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default="")
    parser.add_argument("--high", type=int, default=450, help="tokens of the longest text")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), help="a model of random weights")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="tokens of EmbedLM's chunks")
    parser.add_argument("--mini-batch", type=int, default=MINI_BATCH, help="texts of the peer's")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        one_side(args)
        return
    import embedlm

    with tempfile.TemporaryDirectory() as scratch:
        folder, data = Path(scratch) / "model", Path(scratch) / "pairs.jsonl"
        if args.shape:
            build_model(folder, shape=args.shape)
        else:
            embedlm.load("builtin-base", dtype="float32").save_pretrained(folder)
        tokens, busy = write_pairs(folder, data, args.pairs, args.high), other_work()
        for size in filter(None, args.memory.split(",")):
            write_pairs(folder, data, int(size), args.high)
            one = contender("ours", folder, data, int(size), args)
            print(f"batch {size}: peak {one['peak']:.0f} MB")
        if args.memory:
            return
        peak = ceiling(args.device)
        work = 4 * tokens * flops_per_token(folder)  # two passes forward, one back (twice the work)
        print(f"{peak / 1e9:.0f} GFLOP/s of bfloat16 products; other work: {busy:.0%}")
        print(f"{args.pairs} pairs, {tokens} tokens, {args.threads} threads\n")
        print("| side | seconds a step | pairs a second | share of ceiling | peak MB | losses |")
        print("|---|---|---|---|---|---|")
        results = {}
        for side in ("ours", "theirs"):
            one = results[side] = contender(side, folder, data, args.pairs, args)
            one["step"] = statistics.median(one["seconds"][1:])
            losses = " ".join(f"{value:.4f}" for value in one["losses"])
            print(
                f"| {side} | {one['step']:.2f} | {args.pairs / one['step']:.1f} "
                f"| {work / one['step'] / peak:.0%} | {one['peak']:.0f} | {losses} |"
            )
        print(f"\nratio {results['theirs']['step'] / results['ours']['step']:.2f}, target 2")


if __name__ == "__main__":
    main()
