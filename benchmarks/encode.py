"""EmbedLM against sentence-transformers: same model, same pooling, same texts, one run.

    python benchmarks/encode.py [--quick] [--repeats 3] [--json]

Each contender runs in a process of its own, so that peak memory is its own. Throughput is the
median of the repeats after a warm-up on eight texts; the ceiling is the bfloat16 matrix-product
rate measured beside.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.shape import build_model, flops_per_token, mixed_texts, prompts

ICL = {
    "name": "five-shot",
    "backbone": {"attention": "causal"},
    "prompt": {
        "default": "{demonstrations}{text}",
        "demonstration": "{instruct}: {query} -> {response}",
        "separator": "\n\n",
    },
    "pooling": {"kind": "last"},
}
WORKLOADS = {
    "mixed lengths": {"target": 1.8, "count": 256},
    "MetaEOL, 8 prompts": {"target": 3.0, "count": 48},
    "five-shot prompts": {"target": 5.0, "count": 48},
}


def rendered(workload: str, tokenizer: Any, texts: list[str]) -> list[list[str]]:
    """Return for each text the strings whose vectors are averaged."""
    import embedlm
    from embedlm.prompt.template import clean_text, fill

    if workload == "mixed lengths":
        return [[text] for text in texts]
    if workload.startswith("MetaEOL"):
        templates = embedlm.Recipe.load("metaeol").prompt.default
        assert isinstance(templates, tuple)
        clean = [clean_text(text, "prompteol") for text in texts]
        return [[str(t).replace("{text}", text) for t in templates] for text in clean]
    shots = prompts(tokenizer, 400)
    one: Any = ICL["prompt"]
    lead = "".join(
        fill(one["demonstration"], shot, ("instruct", "query", "response")) + "\n\n"
        for shot in shots
    )
    return [[lead + text] for text in texts]


def run_embedlm(folder: str, workload: str) -> Callable[[list[str]], Any]:
    """Return a call that embeds the workload with EmbedLM."""
    import embedlm

    mean = embedlm.Recipe.load("plain-mean").override({"backbone.attention": "causal"})
    recipe: Any = {"mixed lengths": mean, "five-shot prompts": ICL}.get(workload, "metaeol")
    model = embedlm.load(folder, recipe=recipe)
    shots = prompts(model.tokenizer, 400) if recipe is ICL else None
    return lambda texts: model.encode(texts, demonstrations=shots, show_progress=False)


def run_peer(folder: str, workload: str) -> Callable[[list[str]], Any]:
    """Return a call that embeds the workload with sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    body = Transformer(folder, model_kwargs={"dtype": torch.bfloat16})
    mode = "mean" if workload == "mixed lengths" else "lasttoken"
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode=mode)
    model = SentenceTransformer(modules=[body, pooling], device="cpu")

    def call(texts: list[str]) -> Any:
        strings = rendered(workload, model.tokenizer, texts)
        flat = [string for row in strings for string in row]
        vectors = model.encode(flat, show_progress_bar=False)
        stacked = np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1, vectors.shape[1])
        return stacked.mean(1)

    return call


def contender(args: argparse.Namespace) -> None:
    """Measure one contender on one workload and write what it found."""
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    texts = mixed_texts(tokenizer, args.count or int(WORKLOADS[args.workload]["count"]))
    make = run_embedlm if args.contender == "embedlm" else run_peer
    call = make(args.folder, args.workload)
    call(texts[:8])
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        vectors = call(texts)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    np.save(args.out, vectors.astype(np.float32))
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def ceiling() -> float:
    """Return the bfloat16 matrix-product rate in operations a second."""
    x, w = torch.randn(2048, 1024).bfloat16(), torch.randn(3072, 1024).bfloat16()
    best = float("inf")
    with torch.inference_mode():
        for _ in range(30):
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            best = min(best, time.perf_counter() - start)
    return 2 * 2048 * 1024 * 3072 / best


def measure(folder: Path, workload: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run both contenders on a workload, one after the other."""
    found: dict[str, Any] = {}
    vectors = {}
    for name in ("embedlm", "sentence-transformers"):
        out = folder.parent / f"{name}.npy"
        command = [sys.executable, __file__, "--contender", name, "--workload", workload]
        command += ["--folder", str(folder), "--out", str(out), "--repeats", str(args.repeats)]
        command += ["--threads", str(args.threads), "--count", str(args.count or 0)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found[name] = json.loads(done.stdout.strip().splitlines()[-1])
        vectors[name] = np.load(out)
    ours, peer = vectors["embedlm"], vectors["sentence-transformers"]
    cosine = (ours * peer).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(peer, axis=1))
    times = {name: statistics.median(entry["seconds"]) for name, entry in found.items()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = mixed_texts(tokenizer, args.count or int(WORKLOADS[workload]["count"]))
    strings = [s for row in rendered(workload, tokenizer, texts) for s in row]
    tokens = sum(len(ids) for ids in tokenizer(strings)["input_ids"])
    return {
        "workload": workload,
        "texts": len(texts),
        "tokens": tokens,
        "seconds": times,
        "ratio": times["sentence-transformers"] / times["embedlm"],
        "target": WORKLOADS[workload]["target"],
        "cosine": float(cosine.min()),
        "peak_mb": {name: entry["peak_mb"] for name, entry in found.items()},
        "flops": tokens * flops_per_token(folder),
    }


def main() -> None:
    """Measure every workload and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 layers, a smoke test")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--count", type=int, default=None, help="texts, in place of the default")
    parser.add_argument("--only", choices=list(WORKLOADS), default=None)
    parser.add_argument("--model", type=Path, default=None, help="folder to build the model in")
    parser.add_argument("--json", action="store_true")
    for name in ("contender", "workload", "folder", "out"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        contender(args)
        return
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = build_model(
            (args.model or Path(temporary)) / "model", layers=4 if args.quick else 28
        )
        rows = [measure(folder, w, args) for w in WORKLOADS if args.only in (None, w)]
        rate = ceiling()
    if args.json:
        print(json.dumps({"ceiling": rate, "rows": rows}, indent=2))
        return
    print(f"bfloat16 matrix products: {rate / 1e9:.0f} GFLOP/s, {args.threads} threads\n")
    print(
        "| workload | texts | tokens | EmbedLM s | ST s | ratio | wanted | min cosine "
        "| share of ceiling | peak MB (EmbedLM / ST) |\n|" + "---|" * 10
    )
    for row in rows:
        ours, peer = row["seconds"]["embedlm"], row["seconds"]["sentence-transformers"]
        peak = row["peak_mb"]
        print(
            f"| {row['workload']} | {row['texts']} | {row['tokens']} | {ours:.2f} | {peer:.2f} "
            f"| {row['ratio']:.2f} | {row['target']} | {row['cosine']:.5f} "
            f"| {row['flops'] / ours / rate:.0%} "
            f"| {peak['embedlm']:.0f} / {peak['sentence-transformers']:.0f} |"
        )


if __name__ == "__main__":
    main()
