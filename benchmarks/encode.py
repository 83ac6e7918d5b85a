"""EmbedLM against sentence-transformers: same model, same pooling, same texts, one run.

    python benchmarks/encode.py [--quick] [--repeats 3] [--json] [--int8] [--compiled]
        [--llama-cpp PYTHON]

Each contender runs in a process of its own (contender.py), so that peak memory is its own.
After a warm-up on eight texts they take turns, and the ratio is the median of the repeats' ratios.
sentence-transformers is measured with its default batch size and, once each, with others: the best
of all is shown too.
The ceiling is the bfloat16 matrix-product rate measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.shape import build_model, flops_per_token, mixed_texts, prompts

Vectors = npt.NDArray[np.float32]
OURS, PEER = "embedlm", "sentence-transformers"
INTEGERS, COMPILED = "embedlm-int8", "embedlm-compiled"
LLAMA = {"llama.cpp BF16": "bf16", "llama.cpp Q8_0": "q8_0"}
SCRIPT = Path(__file__).with_name("contender.py")
PEER_BATCH = 32
"""The default of sentence-transformers."""
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
SENTENCES = {"target": 3.0, "count": 4096, "low": 8, "high": 40}
WORKLOADS: dict[str, dict[str, Any]] = {
    "mixed lengths": {"target": 3.0, "count": 256},
    "MetaEOL, 8 prompts": {"target": 4.0, "count": 48},
    "five-shot prompts": {"target": 8.0, "count": 48},
    "short queries": {"target": 3.0, "count": 1024, "low": 8, "high": 16},
    "long documents": {"target": 1.8, "count": 8, "low": 2000, "high": 2000},
    "MetaEOL, short texts": {"target": 8.0, "count": 48, "low": 8, "high": 16},
    "short queries, instructed": {"target": 3.0, "count": 1024, "low": 8, "high": 16},
    "sentences, built-in model": {**SENTENCES, "dtypes": ("bfloat16", "float32")},
    "sentences, built-in, float32": {**SENTENCES, "dtypes": ("float32", "float32")},
    "sentences, built-in, bfloat16": {**SENTENCES, "dtypes": ("bfloat16", "bfloat16")},
}
"""The built-in model runs as `embedlm.load()` runs it where bfloat16 is fast, and the peer in what
it advises on a CPU; then both in one dtype."""
PLAIN = ("mixed lengths", "short queries", "long documents")
INSTRUCTED = {
    "name": "instructed",
    "backbone": {"attention": "causal"},
    "prompt": {
        "default": "Instruct: Given a web search query, retrieve relevant passages that answer the "
        "query\nQuery: {text}"
    },
    "pooling": {"kind": "last"},
}
"""The prompt of E5-mistral, Qwen3-Embedding and others for web search."""


def workload(name: str, tokenizer: Any, count: int) -> dict[str, Any]:
    """Return texts and recipe for EmbedLM, and what the peer is given: strings to be averaged."""
    import embedlm
    from embedlm.prompt.filling import clean_text
    from embedlm.schema.template import fill

    sizes = {key: WORKLOADS[name][key] for key in ("low", "high") if key in WORKLOADS[name]}
    texts = mixed_texts(tokenizer, count, **sizes)
    dtypes = WORKLOADS[name].get("dtypes", ("bfloat16", "bfloat16"))
    work: dict[str, Any] = {"texts": texts, "demonstrations": None, "pooling": "lasttoken"}
    work["dtypes"] = dtypes  # ours, the peer's
    if name.endswith("instructed"):
        before: Any = INSTRUCTED["prompt"]
        strings = [[before["default"].replace("{text}", text)] for text in texts]
        return {**work, "recipe": INSTRUCTED, "strings": strings}
    if name in PLAIN or name.startswith("sentences"):
        recipe = embedlm.Recipe.load("plain-mean").override({"backbone.attention": "causal"})
        own = json.loads(recipe.model_dump_json(exclude_defaults=True))
        return {**work, "recipe": own, "pooling": "mean", "strings": [[text] for text in texts]}
    if name.startswith("MetaEOL"):
        templates = embedlm.Recipe.load("metaeol").prompt.default
        assert isinstance(templates, tuple)
        clean = [clean_text(text, "prompteol") for text in texts]
        strings = [[str(t).replace("{text}", text) for t in templates] for text in clean]
        return {**work, "recipe": "metaeol", "strings": strings}
    shots = prompts(tokenizer, 400)
    one: Any = ICL["prompt"]
    written = [fill(one["demonstration"], s, ("instruct", "query", "response")) for s in shots]
    lead = "".join(shot + one["separator"] for shot in written)
    strings = [[lead + text] for text in texts]
    return {**work, "recipe": ICL, "demonstrations": shots, "strings": strings}


def _builtin(place: Path) -> Path:
    """Write the built-in base in float32, which both sides can load."""
    import embedlm

    folder = place / "builtin"
    if not folder.is_dir():
        embedlm.load("builtin-base", dtype="float32").save_pretrained(folder)
        # The peer would put each text into a chat, whose tokens it would read, too.
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


class Contender:
    """A process that embeds the workload each time it is told to."""

    def __init__(
        self,
        name: str,
        folder: Path,
        args: argparse.Namespace,
        batch_size: int = PEER_BATCH,
        *,
        script: Path = SCRIPT,
        env: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.out = folder.parent / f"{name}.npy"
        given = {
            "folder": folder,
            "work": folder.parent / "work.json",
            "out": self.out,
            "device": args.device,
            "threads": args.threads,
            "batch-size": batch_size,
        }
        if name in LLAMA:
            given["type"] = LLAMA[name]
            command = [str(args.llama_cpp), str(Path(__file__).with_name("contender_llama.py"))]
        else:
            command = [sys.executable, str(script), name]
        command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=env
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self.errors.read()[-2000:]}")
        return line

    def seconds(self) -> float:
        """Return how long one go takes."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._line())

    def end(self) -> tuple[Vectors, float]:
        """Return the vectors and the peak memory in MB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peak = float(self._line())
        self.process.wait()
        return np.load(self.out), peak


def smallest_cosine(a: Vectors, b: Vectors) -> float:
    """Return the smallest cosine of two sets of vectors."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def ceiling(device: str = "cpu") -> float:
    """Return the bfloat16 matrix-product rate in operations a second."""
    wide = 1024 if device == "cpu" else 8192
    rows, outputs = 2 * wide, wide if device != "cpu" else 3072
    x, w = (torch.randn(n, wide, device=device).bfloat16() for n in (rows, outputs))
    best = float("inf")
    with torch.inference_mode():
        for _ in range(30):
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            if device != "cpu":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return 2 * rows * wide * outputs / best


def other_work(seconds: float = 3.0) -> float:
    """Return the share of the processors' time that other work takes while this waits."""

    def spent() -> tuple[float, float]:
        values = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(values) - values[3] - values[4], sum(values)

    if not Path("/proc/stat").is_file():
        return 0.0
    before = spent()
    time.sleep(seconds)
    after = spent()
    return (after[0] - before[0]) / max(1.0, after[1] - before[1])


def measure(folder: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run both contenders on a workload, one after the other."""
    if name.startswith("sentences"):
        folder = _builtin(folder.parent)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    target, count = WORKLOADS[name]["target"], args.count or WORKLOADS[name]["count"]
    work = workload(name, tokenizer, count)
    work["ids"] = [tokenizer(row)["input_ids"] for row in work["strings"]]
    (folder.parent / "work.json").write_text(json.dumps(work), encoding="utf-8")
    tokens = sum(len(ids) for rows in work["ids"] for ids in rows)
    # In turn, so that a change of the machine's pace meets both.
    ours, peer = Contender(OURS, folder, args), Contender(PEER, folder, args)
    pairs = [(ours.seconds(), peer.seconds()) for _ in range(args.repeats)]
    (a, our_peak), (b, peer_peak) = ours.end(), peer.end()
    seconds = {
        OURS: statistics.median(pair[0] for pair in pairs),
        PEER: statistics.median(pair[1] for pair in pairs),
    }
    others = {PEER_BATCH: seconds[PEER]}
    for size in args.batch_sizes:
        one = Contender(PEER, folder, args, size)
        others[size] = min(one.seconds(), others.get(size, float("inf")))
        one.end()
    best = min(others, key=lambda size: others[size])
    ratio = statistics.median(theirs / own for own, theirs in pairs)
    cosine = smallest_cosine(a, b)
    peaks = {OURS: our_peak, PEER: peer_peak}
    return {
        "workload": name,
        "texts": len(work["texts"]),
        "tokens": tokens,
        "seconds": seconds,
        "pairs": pairs,
        "ratio": ratio,
        "target": target,
        "peer_batch_sizes": others,
        "peer_best": {"batch_size": best, "ratio": others[best] / seconds[OURS]},
        "cosine": cosine,
        "further": further(a, name, folder, args),
        "peak_mb": peaks,
        "flops": tokens * flops_per_token(folder),
        "met": bool(ratio >= target and cosine >= 0.9995 and peaks[OURS] <= peaks[PEER]),
    }


def further(
    ours: Vectors, workload: str, folder: Path, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Measure what else was asked for: EmbedLM in int8 or compiled at once, llama.cpp."""
    names = [INTEGERS] * args.int8 + [COMPILED] * args.compiled
    names += LLAMA if args.llama_cpp and "built-in" not in workload else []
    found = {}
    for name in names:
        one = Contender(name, folder, args)
        spent = statistics.median(one.seconds() for _ in range(args.repeats))
        vectors, peak = one.end()
        cosine = smallest_cosine(ours, vectors)
        found[name] = {"seconds": spent, "cosine": cosine, "peak_mb": peak}
    return found


def show(rows: list[dict[str, Any]], rate: float, busy: float, args: argparse.Namespace) -> None:
    """Print one table."""
    print(f"bfloat16 matrix products: {rate / 1e9:.0f} GFLOP/s, {args.threads} threads")
    if busy > 0.1:
        print(f"Other work took {busy:.0%} of the machine: these numbers are not to be quoted.")
    # A prefix computed once counts for every text, so that a share can exceed the ceiling.
    print(
        "\n| workload | texts | tokens | EmbedLM s | ST s | ratio | wanted | ratio to ST's best "
        "| min cosine | share of ceiling (EmbedLM / ST) | peak MB (EmbedLM / ST) | met |\n"
        + "|---" * 12
        + "|"
    )
    for row in rows:
        ours, peer = row["seconds"][OURS], row["seconds"][PEER]
        best, peak = row["peer_best"], row["peak_mb"]
        shares = [row["flops"] / seconds / rate for seconds in (ours, peer)]
        print(
            f"| {row['workload']} | {row['texts']} | {row['tokens']} | {ours:.2f} | {peer:.2f} "
            f"| {row['ratio']:.2f} | {row['target']} "
            f"| {best['ratio']:.2f} (batch {best['batch_size']}) | {row['cosine']:.5f} "
            f"| {shares[0]:.0%} / {shares[1]:.0%} | {peak[OURS]:.0f} / {peak[PEER]:.0f} "
            f"| {'yes' if row['met'] else 'no'} |"
        )
    for row in rows:
        for name, one in row["further"].items():
            times = row["seconds"][OURS] / one["seconds"]
            share = row["flops"] / one["seconds"] / rate
            print(
                f"{row['workload']}, {name}: {one['seconds']:.2f} s, {times:.2f} times as fast as "
                f"EmbedLM, {share:.0%} of the ceiling, cosine to it {one['cosine']:.5f}, peak "
                f"{one['peak_mb']:.0f} MB"
            )


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 layers, a smoke test")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=None, help="texts, in place of the default")
    parser.add_argument("--only", choices=list(WORKLOADS), default=None)
    parser.add_argument("--model", type=Path, default=None, help="folder to build the model in")
    parser.add_argument(
        "--batch-sizes",
        type=lambda given: [int(size) for size in given.split(",") if size],
        default=[8, 16, 64],
        help="of sentence-transformers, tried once each beside its default; empty for none",
    )
    parser.add_argument("--shape", choices=("0.6B", "7B"), default="0.6B")
    parser.add_argument("--int8", action="store_true", help="measure EmbedLM in int8 too")
    parser.add_argument(
        "--compiled", action="store_true", help="and compiled before, however short the job"
    )
    parser.add_argument(
        "--llama-cpp", type=Path, default=None, help="interpreter with llama-cpp-python and gguf"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure every workload and print one table."""
    args = arguments()
    busy = other_work()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.model or Path(temporary)) / "model"
        build_model(folder, layers=4 if args.quick else 28, shape=args.shape)
        rate = ceiling(args.device)
        rows = [measure(folder, name, args) for name in WORKLOADS if args.only in (None, name)]
        rate = max(rate, ceiling(args.device))
    if args.json:
        about = {"ceiling": rate, "threads": args.threads, "busy": busy, "quick": args.quick}
        print(json.dumps({**about, "rows": rows}, indent=2))
    else:
        show(rows, rate, busy, args)


if __name__ == "__main__":
    main()
