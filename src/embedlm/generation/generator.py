"""The contract of everything that writes text, and a plain function that keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from embedlm.errors import GenerationError

__all__ = ["Chat", "FunctionGenerator", "Generator", "Sampling", "batches"]

Chat = list[dict[str, str]]
"""Turns of {"role": ..., "content": ...}."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 96


@runtime_checkable
class Generator(Protocol):
    """Continues chats."""

    @property
    def name(self) -> str:
        """The generator's identity, part of the cache's key: one name, one set of answers."""

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the answer to each chat, in order; a chat and its seed decide the answer.

        None means that a chat got no answer, because it was too long or was refused.

        Raises:
            GenerationError: the generator failed; the answers it yielded before are valid.
        """


class FunctionGenerator:
    """Generates with a function (chat, sampling, seed) -> answer, identified by its name."""

    def __init__(self, function: Callable[[Chat, Sampling, int], str | None]) -> None:
        self.function = function
        name = getattr(function, "__qualname__", "<")
        if "<" in name:
            raise GenerationError(
                f"generator {name!r} has no name to cache its answers under; define the function "
                "at the top of a module, or give an object with name and generate()"
            )
        self.name = f"function:{function.__module__}.{name}"

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the function's answer to each chat."""
        for chat, seed in zip(chats, seeds, strict=True):
            yield self.function(chat, sampling, seed)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size` items."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
