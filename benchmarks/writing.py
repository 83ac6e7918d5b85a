"""How fast a language model on this machine writes, against transformers' `generate`.

    python benchmarks/writing.py MODEL [--chats 64] [--new 32] [--threads 1]

The same weights in bfloat16, the same chats in batches of the same size, greedy, once with short
prompts and once with prompts of some 600 tokens. transformers keeps PyTorch's own attention.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from embedlm.backbone import gguf_folder, load_backbone
from embedlm.generation.generator import Chat, Sampling
from embedlm.generation.local import LocalGenerator
from embedlm.schema.recipe import Backbone as BackboneRecipe

WORDS = "river mountain water bridge quick brown fox jumps lazy dog winter engine music trade"
RUNS = 3


def chats_of(count: int, words: tuple[int, int]) -> list[Chat]:
    """Return chats whose only turn has a number of words within bounds."""
    rng = random.Random(0)
    texts = (" ".join(rng.choices(WORDS.split(), k=rng.randint(*words))) for _ in range(count))
    return [[{"role": "user", "content": f"Write a sentence about: {text}"}] for text in texts]


def ours(writer: LocalGenerator, chats: Sequence[Chat], new: int) -> list[str]:
    """Write with EmbedLM."""
    answers = writer.generate(chats, Sampling(0.0, 1.0, new), [0] * len(chats))
    return [answer or "" for answer in answers]


def theirs(model: Any, writer: LocalGenerator, chats: Sequence[Chat], new: int) -> list[str]:
    """Write with transformers, rows of like length together."""
    rows = [writer.ids(chat) for chat in chats]
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at]))
    answers = [""] * len(rows)
    size = max(1, writer.batch_tokens // (len(rows[order[0]]) + new))
    for at in range(0, len(order), size):
        some = order[at : at + size]
        longest = max(len(rows[one]) for one in some)
        ids_BT = torch.tensor([[0] * (longest - len(rows[one])) + rows[one] for one in some])
        mask_BT = torch.tensor(
            [[0] * (longest - len(r)) + [1] * len(r) for r in map(rows.__getitem__, some)]
        )
        out_BT = model.generate(
            input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=new, do_sample=False
        )
        for one, row in zip(some, out_BT[:, longest:], strict=True):
            answers[one] = writer.tokenizer.decode(row, skip_special_tokens=True)
    return answers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder, hub id or GGUF file")
    parser.add_argument("--chats", type=int, default=64)
    parser.add_argument("--new", type=int, default=32, help="tokens written at most")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    writer = LocalGenerator.load(given.model)
    recipe = BackboneRecipe(attention="native")
    plain: Any = load_backbone(gguf_folder(given.model), recipe, head=True, attn="sdpa")
    plain = plain.language_model()
    plain.set_attn_implementation("sdpa")
    print("| prompts | tokens each | embedlm, s | transformers, s | times as fast | same texts |")
    print("|---|---|---|---|---|---|")
    for name, words in (("short", (2, 12)), ("long", (150, 450))):
        chats = chats_of(given.chats, words)
        tokens = sum(len(writer.ids(chat)) for chat in chats) / len(chats)
        seconds: tuple[list[float], list[float]] = ([], [])
        texts: list[list[str]] = [[], []]
        for _ in range(RUNS):
            begun = time.perf_counter()
            texts[0] = ours(writer, chats, given.new)
            between = time.perf_counter()
            texts[1] = theirs(plain, writer, chats, given.new)
            seconds[0].append(between - begun)
            seconds[1].append(time.perf_counter() - between)
        best = [min(one) for one in seconds]
        same = sum(a.strip() == b.strip() for a, b in zip(*texts, strict=True))
        print(
            f"| {name} | {tokens:.0f} | {best[0]:.1f} | {best[1]:.1f} | {best[1] / best[0]:.2f} | "
            f"{same} of {len(chats)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
