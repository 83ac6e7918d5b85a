"""From pairs of query and document to the token ids that a re-ranker reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError
from embedlm.prompt.render import Renderer, Request
from embedlm.schema.prompt import Prompt
from embedlm.schema.rerank import Method

__all__ = ["batches", "joined_pairs", "pair_lengths", "shots", "templated_pairs"]

Rows = dict[str, list[list[int]]]
"""What the network reads, by the name of its argument."""


def joined_pairs(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], prompt: str, limit: int | None
) -> Rows:
    """Return the pairs as the tokenizer joins them, the longer text being cut to the limit.

    Raises:
        InputError: a pair without tokens.
    """
    queries = [prompt + query for query, _ in pairs]
    documents = [document for _, document in pairs]
    cut: dict[str, Any] = {"truncation": False}
    if limit:
        cut = {"truncation": "longest_first", "max_length": limit}
    rows = dict(tokenizer(queries, documents, **cut))
    if [] in rows["input_ids"]:
        empty = rows["input_ids"].index([])
        raise InputError(f"pair {empty} has no tokens: its query and document are empty")
    return rows


def templated_pairs(
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    method: Method,
    instruction: str,
    limit: int | None,
) -> Rows:
    """Return the pairs as the method's template writes them, the document being cut."""
    renderer = Renderer(tokenizer, Prompt.model_validate(method.prompt(limit)))
    (batch,) = renderer.render(
        [document for _, document in pairs],
        Request(demonstrations=tuple(shots(method, instruction))),
        [query for query, _ in pairs],
        segments=False,
    )
    return {"input_ids": [list(ids) for ids in batch.ids]}


def pair_lengths(
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    method: Method,
    instruction: str,
    prompt: str,
) -> list[int]:
    """Return how many tokens pairs have, as they are written and before any is shortened."""
    if method.template is None:
        rows = joined_pairs(tokenizer, pairs, prompt, None)
    else:
        rows = templated_pairs(tokenizer, pairs, method, instruction, None)
    return [len(ids) for ids in rows["input_ids"]]


def shots(method: Method, instruction: str) -> list[dict[str, str]]:
    """Return an instruction as the demonstrations that stand for it in `Method.prompt`."""
    return [{"query": instruction}] if instruction and method.takes_instruction else []


def batches(lengths: npt.NDArray[np.int64], budget: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield rows of like length, as many as a budget of tokens takes with their padding."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= budget:
            end += 1
        yield order[start:end]
        start = end
