"""Queries that a language model writes from passages, by few examples (InPars).

The prompt is InPars' (Bonifacio et al., arXiv 2202.05144) in words of our own: examples of a
passage and its question, as turns of a chat, then the passage. A query that is too short, or that
is copied from its passage or from an example, is set aside. `written_queries` is the one place that
knows how queries are written: a pipeline of `embedlm synthesize` can take its place.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from embedlm.adaptation.chunks import Chunk
from embedlm.adaptation.derived import Query
from embedlm.adaptation.settings import WRITTEN
from embedlm.generation import Cache, Generator, Sampling, SeededChat, ask
from embedlm.generation.generator import Chat
from embedlm.jobs import Reject
from embedlm.mining.words import words_of
from embedlm.schema.yaml_files import read_mapping

__all__ = ["prompt_of", "prompts_digest", "written_queries"]

_SAMPLING = Sampling(0.0, 1.0, 64)
"""Greedy, 64 tokens: InPars'."""
_LONGEST = 1500
"""Characters of a passage that the model is shown (InPars': 256 tokens)."""
_WORDS = (3, 60)
_COPIED = 0.75
"""Share of its words that a query may have of an example."""
_LABEL = re.compile(
    r"^(?:[\d.)*-]+\s+)?(?:(?:relevant )?(?:question|query)\s*:)?\s*", re.IGNORECASE
)


@lru_cache(maxsize=1)
def _prompts() -> dict[str, Any]:
    return read_mapping(Path(__file__).with_name("prompts.yaml"), "prompts")


def prompts_digest() -> str:
    """Return what tells these prompts from others."""
    return f"{zlib.crc32(repr(_prompts()).encode()):08x}"


def prompt_of(chunk: Chunk) -> Chat:
    """Return the chat in which a model is asked for a chunk's query."""
    prompts = _prompts()
    chat: Chat = []
    for shot in prompts["examples"]:
        chat.append({"role": "user", "content": _turn(prompts, shot["passage"])})
        chat.append({"role": "assistant", "content": shot["question"]})
    return [*chat, {"role": "user", "content": _turn(prompts, chunk.passage[:_LONGEST])}]


def _turn(prompts: dict[str, Any], passage: str) -> str:
    return f"{prompts['task'].strip()}\n\nPassage: {passage.strip()}\n\nQuestion:"


def written_queries(
    llm: Generator, chunks: Sequence[Chunk], seed: int
) -> tuple[list[Query], list[Reject]]:
    """Return a query for each chunk, and the answers that are none with the reason.

    Raises:
        GenerationError: the model cannot be asked; its answers until then are in the cache.
    """
    requests: list[SeededChat] = [(prompt_of(chunk), seed) for chunk in chunks]
    cache = Cache()
    try:
        answers = ask(llm, cache, _SAMPLING, requests)
    finally:
        cache.close()
    found: list[Query] = []
    aside: list[Reject] = []
    for number, (chunk, answer) in enumerate(zip(chunks, answers, strict=True), 1):
        query = _query(answer)
        wrong = _wrong(query, chunk)
        if wrong is None:
            found.append(Query(query, WRITTEN, chunk, chunk.passage))
        else:
            aside.append(Reject(chunk.id, number, wrong, query[:200]))
    return found, aside


def _query(answer: str | None) -> str:
    """Return the first line of an answer, without a label or quotation marks."""
    lines = [line.strip() for line in (answer or "").splitlines() if line.strip()]
    return _LABEL.sub("", lines[0], count=1).strip(" \"'`*") if lines else ""


def _wrong(query: str, chunk: Chunk) -> str | None:
    low, high = _WORDS
    count = len(words_of(query))
    if not query:
        return "no answer"
    if not low <= count <= high:
        return f"{count} words; {low} to {high} are taken"
    if query.lower() in chunk.passage.lower():
        return "copied from the passage"
    own = set(words_of(query))
    for shot in _prompts()["examples"]:
        for text in (shot["question"], shot["passage"]):
            if len(own & set(words_of(text))) > _COPIED * len(own):
                return "copied from an example"
    return None
