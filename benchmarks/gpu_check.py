"""Check on a GPU that the fast path gives the slow one's vectors: packed, padded, with prefixes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import embedlm
from benchmarks.encode import smallest_cosine
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
            cosine = smallest_cosine(a, b)
            failed |= cosine < LEAST
            print(f"{recipe}: {fast.backbone.implementation}, cosine {cosine:.6f}")
        slow = embedlm.load(folder, "plain-mean", device="cuda", dtype="bfloat16", attn="sdpa")
        whole = slow.encode(texts)
        for dtype, least in (("int8", 0.99), ("fp8", 0.98)):
            try:
                found = embedlm.load(folder, "plain-mean", device="cuda", dtype=dtype).encode(texts)
            except embedlm.errors.UnsupportedError as error:
                print(f"{dtype}: {error}")
                continue
            cosine = smallest_cosine(whole, found)
            failed |= cosine < least
            print(f"{dtype}: cosine {cosine:.6f}")
    peak = torch.cuda.max_memory_allocated() >> 20
    print(f"varlen: {'off' if varlen._off else 'on'}; peak {peak} MB")
    if failed:
        raise SystemExit("a path differs")


if __name__ == "__main__":
    main()
