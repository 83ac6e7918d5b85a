"""From pairs of query and document to the token ids that a re-ranker reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError
from embedlm.prompt.render import Renderer, Request
from embedlm.schema.arguments import short
from embedlm.schema.prompt import Prompt
from embedlm.schema.rerank import Method

__all__ = [
    "batches",
    "check_queries",
    "joined_pairs",
    "pair_lengths",
    "shortened_parts",
    "shots",
    "templated_pairs",
]

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


def shortened_parts(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], method: Method, prompt: str, limit: int
) -> list[tuple[bool, bool]]:
    """Tell of each pair whether its query, and whether its document, is shortened.

    A template's query is never shortened, see `check_queries`.

    Args:
        tokenizer: which shortens nothing.
        pairs: all longer than the limit.
        method: says how they are written.
        prompt: written before the query, where the tokenizer joins the pair.
        limit: tokens of a pair.
    """
    if method.template is not None or not pairs:
        return [(False, True)] * len(pairs)
    queries = [prompt + query for query, _ in pairs]
    joined = tokenizer(queries, [document for _, document in pairs], truncation=False)
    parts = []
    for encoding in joined.encodings:
        of = encoding.sequence_ids
        parts.append(_give_way(of.count(0), of.count(1), limit - of.count(None)))
    return parts


def _give_way(query: int, document: int, room: int) -> tuple[bool, bool]:
    """Tell which of two texts is shortened by the tokenizer's rule longest_first.

    The longer one gives way until both are of one length, and then both do.
    """
    least = min(query, document, room // 2)
    most = room - least
    kept = (least, most) if query <= document else (most, least)
    return kept[0] < query, kept[1] < document


def check_queries(
    tokenizer: Any, queries: Sequence[str], method: Method, instruction: str, limit: int | None
) -> None:
    """Refuse a query beside which the method's template has no room for a document.

    Where the template has none without a query either, nothing is said of queries.

    Raises:
        InputError: names the query.
    """
    if method.template is None or limit is None:
        return
    alone = [(query, "") for query in ("", *queries)]
    empty, *lengths = pair_lengths(tokenizer, alone, method, instruction, "")
    for query, length in zip(queries, lengths, strict=True):
        if empty < limit <= length:
            raise InputError(
                f"the query {short(query)} is too long for the re-ranker: it takes {length} tokens "
                "with what the template writes around it, which leaves no room for a document "
                f"within max_length {limit}; shorten the query, or load the re-ranker with a "
                "larger max_length"
            )


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
