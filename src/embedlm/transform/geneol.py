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
from pathlib import Path
from typing import Any

from embedlm.generation.asking import SeededChat, ask
from embedlm.generation.cache import Cache
from embedlm.generation.generator import Chat, Generator, Sampling, batches, unquoted
from embedlm.generation.resolve import resolve_generator
from embedlm.jobs.progress import progress
from embedlm.schema.recipe import Transform
from embedlm.schema.yaml_files import read_mapping

__all__ = ["chats_for", "transform_texts"]

log = logging.getLogger(__name__)
_WINDOW = 256
"""Texts whose chats are held in memory at once."""


@lru_cache(maxsize=1)
def _tasks() -> dict[str, Any]:
    return read_mapping(Path(__file__).with_name("geneol.yaml"), "list of tasks")


def _seed(config: Transform, text: str, task: str, sample: int) -> int:
    """Return a seed that depends on the text alone, not on those it comes with."""
    return zlib.crc32(f"{config.seed}\0{task}\0{sample}\0{text}".encode())


def _chat(instruction: str, shots: Sequence[Sequence[str]], text: str) -> Chat:
    chat = [
        {"role": "user", "content": instruction},
        {"role": "assistant", "content": "Alright."},
    ]
    for source, rewritten in shots:
        chat.append({"role": "user", "content": f"Input: {source}"})
        chat.append({"role": "assistant", "content": f"Output: {rewritten}"})
    chat.append({"role": "user", "content": f"Input: {text}"})
    return chat


def chats_for(text: str, config: Transform) -> list[SeededChat]:
    """Return the chats that ask for a text's variants, and their seeds."""
    chats = []
    for name, task in _tasks()["transformations"].items():
        for sample in range(config.per_prompt):
            seed = _seed(config, text, name, sample)
            shots = random.Random(seed).sample(task["examples"], config.demonstrations)
            chats.append((_chat(task["instruction"], shots, text), seed))
    return chats


def _clean(answer: str) -> str:
    """Return an answer's first line, without the label and quotes that models add."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    return unquoted(line.removeprefix("Output:"))


def transform_texts(
    texts: Sequence[str],
    config: Transform,
    generator: Any,
    cache: Cache | None = None,
    *,
    show_progress: bool | None = None,
) -> list[list[str]]:
    """Return the variants of each text, the text itself not among them.

    Where the generator gives no answer to a chat (too long, refused) or an empty one, the text
    itself replaces the variant, so that every text has the same number of variants; a warning says
    how many were replaced. A blank text is its own variant. Equal texts are rewritten once.

    Args:
        texts: the texts to rewrite.
        config: the number of variants of each text, and how they are sampled.
        generator: what writes them; see `resolve_generator`.
        cache: keeps the answers; None opens the default one.
        show_progress: None shows a bar for long jobs on a terminal.

    Raises:
        GenerationError: the generator failed; the answers it gave before are in the cache.
    """
    each = len(_tasks()["transformations"]) * config.per_prompt
    variants = {text: [text] * each for text in texts}
    written = [text for text in variants if text.strip()]
    if written:
        writer = resolve_generator(generator)
        store = cache or Cache()
        try:
            with progress(show_progress, len(written), label="write variants") as bar:
                for part in batches(written, _WINDOW):
                    variants.update(_variants(part, config, writer, store))
                    bar(len(part))
        finally:
            if cache is None:
                store.close()
    return [list(variants[text]) for text in texts]


def _variants(
    texts: list[str], config: Transform, writer: Generator, store: Cache
) -> dict[str, list[str]]:
    """Return the variants of some distinct texts."""
    sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens)
    requests = [request for text in texts for request in chats_for(text, config)]
    each = len(requests) // len(texts)
    owners = [text for text in texts for _ in range(each)]
    variants = _written(requests, owners, sampling, writer, store)
    if config.compositional:
        task = _tasks()["summary"]
        requests = [
            (_chat(task["instruction"], [], variant), _seed(config, variant, "summary", 0))
            for variant in variants
        ]
        variants = _written(requests, variants, sampling, writer, store)
    return {text: variants[i * each : (i + 1) * each] for i, text in enumerate(texts)}


def _written(
    requests: list[SeededChat],
    originals: list[str],
    sampling: Sampling,
    writer: Generator,
    store: Cache,
) -> list[str]:
    """Return the answer to each chat; the text it was about where there is no answer."""
    answers = [_clean(answer or "") for answer in ask(writer, store, sampling, requests)]
    empty = answers.count("")
    if empty:
        log.warning(
            "%s wrote nothing for %d of %d variants; the text itself is used instead",
            writer.name,
            empty,
            len(answers),
        )
    return [answer or text for answer, text in zip(answers, originals, strict=True)]
