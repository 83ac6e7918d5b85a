"""Chats are answered from the cache where their answers are there, else by a generator."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from embedlm.errors import GenerationError
from embedlm.generation.cache import Cache, key_of
from embedlm.generation.generator import Chat, Generator, Sampling, batches
from embedlm.schema.arguments import is_text

__all__ = ["SeededChat", "ask"]

SeededChat = tuple[Chat, int]
_AT_ONCE = 1024
"""Chats given to a generator in one call."""
_SAVED_AFTER = 0.5
"""Seconds of generation that a kill may cost."""


def ask(
    writer: Generator, store: Cache, sampling: Sampling, requests: Sequence[SeededChat]
) -> list[str | None]:
    """Return the answer to each chat and seed; None where the generator gives none.

    Raises:
        GenerationError: the generator failed; the answers it gave before are in the cache.
    """
    keys = [key_of(writer.name, chat, sampling, seed) for chat, seed in requests]
    known = store.get(list(dict.fromkeys(keys)))
    missing = {
        key: request for key, request in zip(keys, requests, strict=True) if key not in known
    }
    for part in batches(missing.items(), _AT_ONCE):
        _generate(dict(part), sampling, writer, store, known)
    return [known.get(key) for key in keys]


def _generate(
    part: dict[str, SeededChat],
    sampling: Sampling,
    writer: Generator,
    store: Cache,
    known: dict[str, str],
) -> None:
    """Add the answers to some requests to the cache and to `known` as they come."""
    chats, seeds = [chat for chat, _ in part.values()], [seed for _, seed in part.values()]
    fresh: dict[str, str] = {}
    saved = time.monotonic()
    try:
        answers = writer.generate(chats, sampling, seeds)
        for key, answer in _checked(writer.name, list(part), answers):
            if answer is not None:
                fresh[key] = known[key] = answer
            if fresh and time.monotonic() - saved > _SAVED_AFTER:
                store.put(fresh.items())
                fresh, saved = {}, time.monotonic()
    finally:
        if fresh:
            store.put(fresh.items())


def _checked(name: str, keys: Sequence[str], answers: Any) -> Iterator[tuple[str, str | None]]:
    """Yield each key with its answer: nothing that is no answer is ever kept.

    Raises:
        GenerationError: answers that are none, too few or too many.
    """
    told = f"the generator {name!r}: generate() yields a string or None for each chat, in order"
    if not isinstance(answers, Iterable):
        raise GenerationError(f"{told} (given {type(answers).__name__})")
    count = 0
    for count, answer in enumerate(answers, start=1):
        if count > len(keys):
            break
        if answer is not None and not isinstance(answer, str):
            raise GenerationError(f"{told} (given {type(answer).__name__} for chat {count})")
        if answer is not None and not is_text(answer):
            raise GenerationError(
                f"{told}; that for chat {count} holds a lone surrogate, half a character, which "
                "can be written nowhere"
            )
        yield keys[count - 1], answer
    if count != len(keys):
        more = "more" if count > len(keys) else f"{count}"
        raise GenerationError(f"{told} (given {more} for {len(keys)} chats)")
