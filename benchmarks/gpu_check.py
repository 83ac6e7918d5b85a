"""Check on a GPU that the fast path gives the slow one's vectors: packed, padded, with prefixes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import embedlm
from benchmarks.shape import build_model, mixed_texts
from embedlm.backbone import varlen

LEAST = 0.9995
"""Cosine that bfloat16 leaves."""


def main() -> None:
    """Print the smallest cosine of each path to padded SDPA; fail where one is too small."""
    failed = False
    with tempfile.TemporaryDirectory() as place:
        folder = build_model(Path(place) / "model", layers=6)
        texts = mixed_texts(embedlm.load(folder, "plain-mean").tokenizer, 200)
        for recipe in ("plain-last", "plain-mean", "metaeol", "e5-mistral"):
            slow = embedlm.load(folder, recipe, device="cuda", dtype="bfloat16", attn="sdpa")
            fast = embedlm.load(folder, recipe, device="cuda", dtype="bfloat16")
            a, b = slow.encode_query(texts), fast.encode_query(texts)
            cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            failed |= bool(cosine.min() < LEAST)
            print(f"{recipe}: {fast.backbone.implementation}, cosine {cosine.min():.6f}")
    peak = torch.cuda.max_memory_allocated() >> 20
    print(f"varlen: {'off' if varlen._off else 'on'}; peak {peak} MB")
    if failed:
        raise SystemExit("a path differs")


if __name__ == "__main__":
    main()
