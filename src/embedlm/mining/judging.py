"""Questions to a language model whose answers must have a form: asked twice, then told as failed.

An answer that cannot be read is never taken for "nothing found".
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from embedlm.generation import Cache, Generator, Sampling, SeededChat, ask
from embedlm.schema.yaml_files import read_mapping

__all__ = [
    "ask_for",
    "block_of",
    "filled",
    "numbered",
    "numbers_of",
    "prompts_digest",
    "shown",
    "snippet_of",
]

Value = TypeVar("Value")
_TEMPERATURE = 0.1
_TOKENS = (2048, 4096)
"""Tokens of the first answer, and of the second: the first may have been cut off (RLHN's)."""
_LONGEST = 4000
"""Characters of a passage that a model is shown."""
_NONE = ("", "none")


@lru_cache(maxsize=1)
def _prompts() -> dict[str, Any]:
    return read_mapping(Path(__file__).with_name("prompts.yaml"), "prompts")


def prompts_digest() -> str:
    """Return what tells these prompts from others."""
    return f"{zlib.crc32(repr(_prompts()).encode()):08x}"


def filled(name: str, **values: Any) -> str:
    """Return a prompt with its slots filled."""
    text = str(_prompts()[name])
    slots = "|".join(values)
    return re.sub(rf"\{{({slots})\}}", lambda slot: str(values[slot[1]]), text)


def numbered(passages: Sequence[str]) -> str:
    """Return passages with their numbers from 1."""
    return "\n\n".join(f"[{i}] {shown(text)}" for i, text in enumerate(passages, 1))


def block_of(answer: str, name: str) -> str | None:
    """Return what stands in the one block of a name; None where there is not one."""
    found = re.findall(rf"<{name}>(.*?)</{name}>", answer, re.DOTALL | re.IGNORECASE)
    return found[0].strip() if len(found) == 1 else None


def numbers_of(text: str | None) -> list[int] | None:
    """Return the numbers of a list with commas; None where it is something else."""
    if text is None:
        return None
    if text.strip().lower().rstrip(".") in _NONE:
        return []
    parts = [part.strip().strip("[]") for part in re.split(r"[,\s>]+", text.strip()) if part]
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else None


def snippet_of(answer: str) -> str | None:
    """Return the snippet of an answer, "" for none; None where the answer has another form."""
    found = block_of(answer, "snippet")
    return None if found is None else "" if found.lower().rstrip(".") in _NONE else found


def ask_for(
    llm: Generator,
    cache: Cache,
    questions: Mapping[Any, str],
    read: Callable[[Any, str], Value | None],
    seed: int,
) -> dict[Any, Value]:
    """Return what was read of the answer to each question; those not readable are left out.

    Args:
        llm: answers.
        cache: keeps answers.
        questions: prompts, by what they are about.
        read: returns the value of an answer; None where it has another form.
        seed: of the sampling.

    Raises:
        GenerationError: the model cannot be asked; answers until then are in the cache.
    """
    values: dict[Any, Value] = {}
    for attempt, tokens in enumerate(_TOKENS):
        left = {about: text for about, text in questions.items() if about not in values}
        requests: list[SeededChat] = [
            ([{"role": "user", "content": text}], zlib.crc32(f"{seed}\0{attempt}\0{text}".encode()))
            for text in left.values()
        ]
        answers = ask(llm, cache, Sampling(_TEMPERATURE, 1.0, tokens), requests)
        for about, answer in zip(left, answers, strict=True):
            value = None if answer is None else read(about, answer)
            if value is not None:
                values[about] = value
    return values


def shown(text: str) -> str:
    """Return as much of a passage as a model is shown."""
    return text[:_LONGEST]
