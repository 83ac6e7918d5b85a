"""GenEOL: variants of a text that keep its meaning (Thirukovalluru and Dhingra, arXiv 2410.14635).

Four instructions ask for a variant each; examples of the task come before the text. The vectors of
the text and of its variants are averaged by the embedder.
"""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from embedlm.recipe import Transform
from embedlm.transform.cache import Cache, key_of
from embedlm.transform.generator import Chat, Generator, Sampling, batches, resolve_generator

__all__ = ["chats_for", "transform_texts"]

log = logging.getLogger(__name__)
_SAVED_EVERY = 64


@lru_cache(maxsize=1)
def _tasks() -> dict[str, Any]:
    file = files("embedlm.transform") / "geneol.yaml"
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def _seed(config: Transform, text: str, task: str, sample: int) -> int:
    """Return a seed that depends on the text alone, not on those it comes with."""
    return zlib.crc32(f"{config.seed}\0{task}\0{sample}\0{text}".encode())


def _chat(instruction: str, shots: Sequence[Sequence[str]], text: str) -> Chat:
    chat = [
        {"role": "user", "content": instruction},
        {"role": "assistant", "content": "Alright."},
    ]
    for given, wanted in shots:
        chat.append({"role": "user", "content": f"Input: {given}"})
        chat.append({"role": "assistant", "content": f"Output: {wanted}"})
    chat.append({"role": "user", "content": f"Input: {text}"})
    return chat


def chats_for(text: str, config: Transform) -> list[tuple[Chat, int]]:
    """Return the chats that ask for a text's variants, and their seeds."""
    found = []
    for name, task in _tasks()["transformations"].items():
        for sample in range(config.per_prompt):
            seed = _seed(config, text, name, sample)
            shots = random.Random(seed).sample(task["examples"], config.demonstrations)
            found.append((_chat(task["instruction"], shots, text), seed))
    return found


def _clean(answer: str) -> str:
    """Return an answer's first line, without the label and quotes that models add."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    line = line.removeprefix("Output:").strip()
    return line[1:-1].strip() if len(line) > 1 and line[0] == line[-1] == '"' else line


def transform_texts(
    texts: Sequence[str], config: Transform, generator: Any, cache: Cache | None = None
) -> list[list[str]]:
    """Return the variants of each text, the text itself not among them.

    An answer that is empty counts as the text itself, so that every text has as many variants.

    Args:
        texts: what to write anew.
        config: how often and how.
        generator: see `resolve_generator`.
        cache: where answers are kept; None opens the default one.

    Raises:
        GenerationError: the generator failed; what it wrote before is in the cache.
    """
    if not texts:
        return []
    writer = resolve_generator(generator)
    store = cache or Cache()
    try:
        sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens)
        requests = [request for text in texts for request in chats_for(text, config)]
        answers = _answers(writer, store, sampling, requests)
        each = len(requests) // len(texts)
        owners = [text for text in texts for _ in range(each)]
        variants = [_clean(answer) or text for answer, text in zip(answers, owners, strict=True)]
        if config.compositional:
            variants = _summaries(variants, config, writer, store, sampling)
    finally:
        if cache is None:
            store.close()
    same = sum(variant == text for variant, text in zip(variants, owners, strict=True))
    if same:
        log.info("%d of %d variants are the text itself", same, len(variants))
    return [variants[i : i + each] for i in range(0, len(variants), each)]


def _summaries(
    variants: list[str], config: Transform, writer: Generator, store: Cache, sampling: Sampling
) -> list[str]:
    """Summarise every variant once more (the compositional form)."""
    instruction = _tasks()["summary"]["instruction"]
    requests = [
        (_chat(instruction, [], variant), _seed(config, variant, "summary", 0))
        for variant in variants
    ]
    answers = _answers(writer, store, sampling, requests)
    return [_clean(answer) or variant for answer, variant in zip(answers, variants, strict=True)]


def _answers(
    writer: Generator, store: Cache, sampling: Sampling, requests: list[tuple[Chat, int]]
) -> list[str]:
    """Return the answers, those in the cache not generated again."""
    keys = [key_of(writer.name, chat, sampling, seed) for chat, seed in requests]
    known = store.get(list(dict.fromkeys(keys)))
    missing = {
        key: request for key, request in zip(keys, requests, strict=True) if key not in known
    }
    for part in batches(missing.items(), _SAVED_EVERY):
        chats = [chat for _, (chat, _) in part]
        seeds = [seed for _, (_, seed) in part]
        fresh: list[tuple[str, str]] = []
        try:
            for (key, _), text in zip(part, writer.generate(chats, sampling, seeds), strict=True):
                fresh.append((key, text))
        finally:
            store.put(fresh)
        known.update(fresh)
    return [known[key] for key in keys]
