"""A random-weight model of a published shape, with a real tokenizer, built on the spot."""

from __future__ import annotations

import json
import math
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

__all__ = ["build_model", "flops_per_token", "mixed_texts", "prompts"]

VOCABULARY = 151_936
_SYLLABLES = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]


def _words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices(_SYLLABLES, k=generator.randint(1, 4))) for _ in range(count)]


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that has a token for most of the made-up words.

    It has one for each word of the recipes too: a prompt must not have more tokens than it would
    have with a published tokenizer, or sharing it would seem to save more than it does.
    """
    generator = random.Random(seed)
    corpus = [" ".join(_words(generator, 12)) for _ in range(3000)]
    recipes = (files("embedlm") / "recipes").iterdir()
    english = " ".join(sorted(file.read_text(encoding="utf-8") for file in recipes))
    corpus += [english] * 40  # a rare word must beat chance pairs of syllables
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=12_000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=32_768,
    )


def _built_layers(folder: Path) -> int | None:
    """Return how many layers the finished model in a folder has; None if there is none."""
    # The tokenizer is written last.
    if not (folder / "tokenizer.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["num_hidden_layers"])


SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16},
    "7B": {"hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32},
}
"""Of Qwen3-0.6B, and about those of a model of 7B."""


def build_model(folder: Path, *, layers: int = 28, head: bool = False, shape: str = "0.6B") -> Path:
    """Write a Qwen3-shaped model in bfloat16 with its tokenizer; return the folder."""
    if _built_layers(folder) == layers:
        build_tokenizer().save_pretrained(folder)
        return folder
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        dtype="bfloat16",
        **SHAPES[shape],
    )
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16)
    (model if head else model.model).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def flops_per_token(folder: Path) -> float:
    """Return the matrix-product operations of a token, attention scores not counted."""
    config = json.loads((folder / "config.json").read_text())
    width, ffn = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] + config["num_key_value_heads"]
    layer = 2 * width * heads * config["head_dim"] + 3 * width * ffn
    return float(2 * layer * config["num_hidden_layers"])


def mixed_texts(
    tokenizer: Any,
    count: int,
    low: int = 4,
    high: int = 450,
    seed: int = 0,
    *,
    median: float = math.exp(4.2),
    spread: float = 1.0,
) -> list[str]:
    """Return texts of log-normal length between `low` and `high` tokens."""
    generator = random.Random(seed)
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(math.log(median), spread, count)), low, high).astype(int)
    texts = []
    for length in lengths.tolist():
        ids = tokenizer(" ".join(_words(generator, length)), add_special_tokens=False)["input_ids"]
        texts.append(str(tokenizer.decode(ids[:length])))
    return texts


def prompts(tokenizer: Any, tokens: int, shots: int = 5) -> list[dict[str, str]]:
    """Return demonstrations of about `tokens` tokens in all."""
    each = tokens // shots
    texts = mixed_texts(tokenizer, 2 * shots, low=each // 2, high=each // 2, seed=7)
    return [
        {"instruct": "find it", "query": texts[2 * i], "response": texts[2 * i + 1]}
        for i in range(shots)
    ]
