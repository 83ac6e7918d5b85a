"""What a run would do, how long it would take and what it would cost, from a short measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from embedlm.adaptation.chunks import Chunk
from embedlm.adaptation.models import Models
from embedlm.adaptation.queries import PASSAGES, Divided
from embedlm.adaptation.settings import Settings
from embedlm.adaptation.split import DEV, HELD_OUT, TRAIN
from embedlm.adaptation.tuning import QUERY_TOKENS, SCORES, steps_of
from embedlm.adaptation.written import Writer
from embedlm.embedder import Embedder
from embedlm.generation import EndpointGenerator, Sampling

__all__ = ["estimated"]

_SAMPLE = 48
"""Chunks that are encoded to measure the speed."""
_BACKWARD = 3.0
"""A step of training takes so many times a forward pass."""
_ANSWER = 20
"""Tokens of a query that a language model writes, about."""


def estimated(
    settings: Settings,
    models: Models,
    chunks: Sequence[Chunk],
    divided: Divided,
    price: float | None,
) -> dict[str, Any]:
    """Return the plan with times in seconds and the cost.

    Args:
        settings: of the run.
        models: loaded; each is tried on a few chunks.
        chunks: of all documents.
        divided: the queries, those of a language model as if it had answered everywhere.
        price: of a million tokens of the language model.
    """
    counts = divided.counts()
    queries = {part: sum(own.values()) for part, own in counts.items()}
    lengths = _lengths(models.base, [chunk.passage for chunk in chunks])
    total, mean = sum(lengths), sum(lengths) / len(lengths)
    rows = queries[TRAIN] + queries[DEV]
    mined, searched = (min(len(chunks), PASSAGES[part]) * mean for part in (TRAIN, HELD_OUT))
    read = mined + rows * (mean + QUERY_TOKENS / 4)
    speed = _speed(models.base, chunks, lengths)
    steps = steps_of(settings, queries[TRAIN])
    group = settings.batch * (QUERY_TOKENS / 4 + (settings.negatives + 1) * mean)
    dev = queries[DEV] * (1 + settings.negatives) * mean * (SCORES + 1)
    times = {
        "mine": read / speed,
        "tune": (steps * group * _BACKWARD + dev) / speed,
        "evaluate": 2 * (searched + queries[HELD_OUT] * QUERY_TOKENS / 4) / speed,
    }
    if models.teacher is not None:
        taught = _speed(models.teacher, chunks, lengths)
        times["mine"] = read / taught
        times["tune"] += min(steps * group, rows * (settings.negatives + 1) * mean) / taught
    if models.reranker is not None:
        times["score"] = rows * (settings.negatives + 1) * _pair_seconds(models.reranker, chunks)
    writer = models.writer
    wrote = None if writer is None else _writing(writer, models.base, settings, chunks)
    if wrote is not None and wrote["seconds"] is not None:
        times["write queries"] = wrote["seconds"]
    if wrote is not None and price is not None:
        wrote["cost"] = round((wrote["prompt_tokens"] + wrote["answer_tokens"]) * price / 1e6, 4)
    return {
        "documents": len({chunk.document for chunk in chunks}),
        "chunks": len(chunks),
        "tokens": total,
        "split": divided.split.by,
        "queries": counts,
        "steps": steps,
        "tokens_a_second": round(speed),
        "seconds": {name: round(value, 1) for name, value in times.items()},
        "total_seconds": round(sum(times.values()), 1),
        "llm": wrote,
        "models": models.facts(),
    }


def _lengths(model: Embedder, texts: Sequence[str]) -> list[int]:
    ids: list[list[int]] = model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    most = model.max_length or max(map(len, ids), default=1)
    return [min(len(row), most) for row in ids]


def _speed(model: Embedder, chunks: Sequence[Chunk], lengths: Sequence[int]) -> float:
    """Return the tokens that a model encodes in a second."""
    stride = max(1, len(chunks) // _SAMPLE)
    some = [chunk.passage for chunk in chunks[::stride]][:_SAMPLE]
    model.encode(some[:1], role="document", show_progress=False)
    start = time.perf_counter()
    model.encode(some, role="document", show_progress=False)
    return max(1.0, sum(lengths[::stride][: len(some)])) / (time.perf_counter() - start)


def _pair_seconds(reranker: Any, chunks: Sequence[Chunk]) -> float:
    pairs = [(chunk.name or chunk.text[:60], chunk.passage) for chunk in chunks[:4]]
    reranker.predict(pairs[:1], probability=False)
    start = time.perf_counter()
    reranker.predict(pairs, probability=False)
    return (time.perf_counter() - start) / len(pairs)


def _writing(
    writer: Writer, base: Embedder, settings: Settings, chunks: Sequence[Chunk]
) -> dict[str, Any]:
    """Return how much a language model has to write; an endpoint is not asked, since it costs."""
    requests = len(chunks[:: -(-len(chunks) // settings.queries)])
    chats = [writer.example(chunk, settings.seed).chat for chunk in chunks[:_SAMPLE]]
    turns = [turn["content"] for chat in chats for turn in chat]
    tokens = sum(_lengths(base, turns)) / len(chats)
    seconds = None
    if not isinstance(writer.llm, EndpointGenerator):
        start = time.perf_counter()
        list(writer.llm.generate(chats[:1], Sampling(0.0, 1.0, _ANSWER), [settings.seed]))
        seconds = (time.perf_counter() - start) * requests
    return {
        "name": writer.name,
        "requests": requests,
        "prompt_tokens": round(requests * tokens),
        "answer_tokens": requests * _ANSWER,
        "seconds": seconds,
        "cost": None,
    }
