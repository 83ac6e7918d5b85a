"""What writes text: the contract, and how a user names one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from embedlm.errors import GenerationError

if TYPE_CHECKING:
    from embedlm.generation.local import StoredGenerator

__all__ = ["Chat", "FunctionGenerator", "Generator", "Sampling", "batches", "resolve_generator"]

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
        """What tells its outputs from another's; part of the cache's key."""

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the answer to each chat, in order; a chat and its seed decide the answer.

        None stands for a chat that got no answer: too long, or refused.

        Raises:
            GenerationError: the generator itself failed; what it yielded before stays good.
        """


class FunctionGenerator:
    """Generates with a function (chat, sampling, seed) -> answer, which its own name identifies."""

    def __init__(self, function: Callable[[Chat, Sampling, int], str | None]) -> None:
        self.function = function
        name = getattr(function, "__qualname__", "<")
        if "<" in name:
            raise GenerationError(
                f"generator {name!r} has no name of its own to keep its answers under; define the "
                "function at the top of a module, or give an object with name and generate()"
            )
        self._name = f"function:{function.__module__}.{name}"

    @property
    def name(self) -> str:
        """The function's module and name."""
        return self._name

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the function's answer to each chat."""
        for chat, seed in zip(chats, seeds, strict=True):
            yield self.function(chat, sampling, seed)


def resolve_generator(spec: Any) -> Generator:
    """Return the generator that was meant.

    Args:
        spec: a `Generator`; a function (chat, sampling, seed) -> answer;
            "http://host:port/v1#model"; a model folder or hub id; or an `Embedder`, whose own model
            then writes.

    Raises:
        GenerationError: nothing of these.
    """
    if isinstance(spec, Generator):
        return spec
    if isinstance(spec, str) and spec.startswith(("http://", "https://")):
        return _endpoint(spec)
    if isinstance(spec, str | os.PathLike):
        from embedlm.generation.local import model_name

        return _stored(str(spec), model_name(str(spec)))
    backbone = getattr(spec, "backbone", None)
    if backbone is not None:
        return _own(backbone)
    if callable(spec):
        return FunctionGenerator(spec)
    raise GenerationError(
        f"generator is {type(spec).__name__}; give a model folder or hub id, "
        "http://host:port/v1#model, a function, or an object with name and generate()"
    )


def _endpoint(spec: str) -> Generator:
    from embedlm.generation.endpoint import EndpointGenerator

    url, mark, model = spec.partition("#")
    if not mark or not model:
        raise GenerationError(f"generator {spec!r} names no model; write http://host:port/v1#model")
    return EndpointGenerator(url, model)


@lru_cache(maxsize=1)
def _stored(source: str, name: str) -> StoredGenerator:
    """Return the generator of a folder or hub id; the last one stays loaded for the next call."""
    from embedlm.generation.local import StoredGenerator

    return StoredGenerator(source, name)


_copies: WeakKeyDictionary[Any, StoredGenerator] = WeakKeyDictionary()
"""Second copies of models that were loaded without their head, by backbone."""


def _own(backbone: Any) -> Generator:
    from embedlm.generation.local import OwnGenerator, StoredGenerator, model_name

    if backbone.head is not None and backbone.causal:
        return OwnGenerator(backbone)
    if backbone not in _copies:
        source = str(backbone.name)
        _copies[backbone] = StoredGenerator(source, model_name(source))
    return _copies[backbone]


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
