"""The contract of everything that writes text, and a plain function that keeps it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from embedlm.errors import GenerationError

__all__ = [
    "Answer",
    "Chat",
    "FunctionGenerator",
    "Generator",
    "Question",
    "Sampling",
    "as_lines",
    "batches",
    "ended",
    "spoken",
    "unquoted",
]

Chat = list[dict[str, str]]
"""Turns of {"role": ..., "content": ...}."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.7
    top_p: float = 1.0
    """The share of probability that the likeliest tokens together have, from which one is drawn."""
    max_new_tokens: int = 96
    """Tokens of an answer, at most."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A text that was written, and how it ended."""

    text: str
    finish: str = "stop"
    """stop; length: the tokens ran out; refused: there is no text, `text` says why."""
    prompt_tokens: int = 0
    new_tokens: int = 0
    logprob: float | None = None
    """Mean log-probability of the new tokens, the one that ended the text left out."""
    scores: tuple[float, ...] | None = None
    """Log-probabilities of what a question asks to be scored: its labels, or its continuation."""


@dataclass(frozen=True, slots=True)
class Question:
    """A chat to answer; all of it decides the answer."""

    chat: Chat
    sampling: Sampling = Sampling()
    seed: int = 0
    stop: str | None = None
    """A text at whose first appearance the answer ends."""
    logprobs: bool = False
    """Whether the answer is to have its mean log-probability."""
    labels: tuple[str, ...] = ()
    """Answers to score instead of writing one: log p(label | chat) of each."""
    continuation: str | None = None
    """An answer to score instead of writing one: the sum of its tokens' log-probabilities."""
    plain: bool = False
    """Whether a model on this machine continues the chat's text as it stands, without template."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """What questions that are answered together have in common."""
        scored = self.labels, self.continuation is None
        return self.sampling, self.stop, self.logprobs, scored, self.plain


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


_THINKS_ALOUD = (
    "the model thinks aloud (<think>) before it answers, and was stopped meanwhile; turn that off, "
    "or have the server keep its thoughts apart (vLLM: --reasoning-parser)"
)
_AROUND = (('"', '"'), ("“", "”"), ("**", "**"), ("__", "__"), ("*", "*"), ("`", "`"))
"""What models put around an answer, and how it ends."""
_THOUGHTS = re.compile(r"\s*<think>.*?</think>\s*|.*?\n\s*</think>\s*\n\s*", re.DOTALL)
"""What a model thinks before it answers; the first mark may stand in its prompt."""


def spoken(text: str) -> str | None:
    """Return what was written without the thoughts before it; None while they are not over."""
    thoughts = _THOUGHTS.match(text) if "</think>" in text else None
    if thoughts is not None:
        return text[thoughts.end() :]
    return None if text.lstrip().startswith("<think>") else text


def ended(text: str, stop: str | None, *, cut: bool) -> tuple[str, str]:
    """Return the answer that a text is, without thoughts before it, and how it ended.

    Args:
        text: all that was written.
        stop: a text at whose first appearance the answer ends.
        cut: whether the tokens ran out.
    """
    said = spoken(text)
    if said is None:
        return ("", "length") if cut else (_THINKS_ALOUD, "refused")
    if stop is not None:
        said, found, _ = said.lstrip().partition(stop)
        cut = cut and not found
    return said, "length" if cut else "stop"


def as_lines(chat: Chat) -> str:
    """Return a chat as lines of "Role: content", the last of which an answer continues."""
    turns = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in chat]
    return "\n".join([*turns, "Assistant:"])


def unquoted(text: str) -> str:
    """Return a text without the quotation marks, or Markdown's, that models put around it."""
    text = text.strip()
    for mark, end in _AROUND:
        inner = text[len(mark) : -len(end)]
        if text.startswith(mark) and text.endswith(end) and inner and mark not in inner:
            return unquoted(inner)
    return text


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
