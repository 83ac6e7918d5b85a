"""One contender of encode.py in a process of its own, so that its peak memory is its own.

python benchmarks/contender.py NAME --folder MODEL --work WORK.json --out VECTORS.npy
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Vectors = npt.NDArray[np.float32]
WARM_UP = 8
"""Texts embedded before the clock starts."""


def run_embedlm(
    folder: str, work: dict[str, Any], device: str, kind: str
) -> Callable[[int], Vectors]:
    """Return a call that embeds the first texts of a workload with EmbedLM."""
    import embedlm

    kinds = kind.split("-")
    dtype = next((one for one in kinds if one in ("int8", "fp8")), work["dtypes"][0])
    model = embedlm.load(folder, recipe=work["recipe"], device=device, dtype=dtype)
    if "compiled" in kinds and model.executor.compiling is not None:
        model.executor.compiling.settle("on")
    shots = work["demonstrations"]
    return lambda count: model.encode(
        work["texts"][:count], demonstrations=shots, show_progress=False
    )


def run_peer(
    folder: str, work: dict[str, Any], device: str, batch_size: int
) -> Callable[[int], Vectors]:
    """Return a call that embeds the first texts, as rendered, with sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    body = Transformer(folder, model_kwargs={"dtype": getattr(torch, work["dtypes"][1])})
    pooling = Pooling(body.get_embedding_dimension(), pooling_mode=work["pooling"])
    model = SentenceTransformer(modules=[body, pooling], device=device)

    def call(count: int) -> Vectors:
        rows = work["strings"][:count]
        flat = [string for row in rows for string in row]
        vectors = model.encode(flat, batch_size=batch_size, show_progress_bar=False)
        stacked = np.asarray(vectors, dtype=np.float32).reshape(len(rows), len(rows[0]), -1)
        return np.asarray(stacked.mean(1), dtype=np.float32)

    return call


def peak_mb() -> float:
    """Return the most memory this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a child starts with its parent's.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return float(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # bytes on macOS


def main() -> None:
    """Warm up, embed the workload once for each line of standard input, and say how long it took.

    At the end of the input the vectors are written and the peak memory is printed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    ours = ("embedlm", "embedlm-int8", "embedlm-compiled")
    parser.add_argument("name", choices=(*ours, "sentence-transformers"))
    parser.add_argument("--folder", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=32, help="sentence-transformers only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = json.loads(args.work.read_text(encoding="utf-8"))
    if args.name in ours:
        call = run_embedlm(args.folder, work, args.device, args.name.partition("-")[2])
    else:
        call = run_peer(args.folder, work, args.device, args.batch_size)
    call(WARM_UP)
    print("ready", flush=True)
    vectors: Vectors | None = None
    for _ in sys.stdin:
        start = time.perf_counter()
        vectors = call(len(work["texts"]))
        print(time.perf_counter() - start, flush=True)
    if vectors is not None:
        np.save(args.out, np.asarray(vectors, dtype=np.float32))
    print(peak_mb())


if __name__ == "__main__":
    main()
