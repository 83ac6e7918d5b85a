"""The requests of a batch: its texts with their roles, instructions, examples and adapters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from embedlm.embedder import Embedder
from embedlm.schema.tuning import Batching, Stage
from embedlm.training.named_adapters import adapter_of
from embedlm.training.rows import Batch, BatchRow
from embedlm.training.trainable import TextRequest

__all__ = ["requests_of"]


def requests_of(
    embedder: Embedder,
    stage: Stage,
    batch: Batch,
    kind: str,
    rows: Sequence[BatchRow],
    rng: np.random.Generator,
) -> list[TextRequest]:
    """Return the requests that embed some rows of a batch.

    There are two: for the queries and for the documents, for the first and for the second texts of
    pairs, or for the two views of bare texts (SimCSE).

    Args:
        embedder: the model, whose recipe gives the prompt.
        stage: gives lengths and examples, and each data set's instructions and adapters.
        batch: the whole batch, from which few-shot examples are drawn.
        kind: kind of the records.
        rows: the rows that this process embeds.
        rng: generator that draws the examples.
    """
    if kind == "texts":
        return _views(embedder, stage, rows)
    query_role, document_role = ("query", "document") if kind == "groups" else (None, None)
    instructions = [stage.data[row.source].instruction for row in rows]
    of_documents = instructions
    if kind == "groups":
        sources = [row.source for row in rows for _ in row.documents]
        of_documents = [stage.data[source].document_instruction for source in sources]
    demonstrations = None
    if stage.batching.demonstrations and kind == "groups":
        default = embedder.renderer.instruction("query")
        demonstrations = tuple(
            _demonstrations(batch, row, default if text is None else text, stage.batching, rng)
            for row, text in zip(rows, instructions, strict=True)
        )
    source = rows[0].source if rows else 0

    def request(
        texts: Iterable[str], role: str | None, given: Sequence[str | None], shots: Any = None
    ) -> TextRequest:
        length, adapter = length_of(stage.max_length, role), adapter_of(stage, source, role)
        own = _instructions(embedder, given, role)
        return TextRequest(tuple(texts), role, own, shots, length, adapter)

    documents = (text for row in rows for text in row.documents)
    return [
        request((row.query for row in rows), query_role, instructions, demonstrations),
        request(documents, document_role, of_documents),
    ]


def _views(embedder: Embedder, stage: Stage, rows: Sequence[BatchRow]) -> list[TextRequest]:
    """Return the request for bare texts: twice for SimCSE, whose views differ by dropout."""
    texts, source = tuple(row.query for row in rows), rows[0].source if rows else 0
    views = 2 if any(loss.kind == "simcse" for loss in stage.objective) else 1
    given = [stage.data[row.source].instruction for row in rows]
    own, length = _instructions(embedder, given, None), length_of(stage.max_length, None)
    adapter = adapter_of(stage, source, None)
    return [TextRequest(texts, None, own, max_length=length, adapter=adapter)] * views


def _instructions(
    embedder: Embedder, instructions: Sequence[str | None], role: str | None
) -> tuple[str, ...] | None:
    """Return one instruction for each text: the data set's, else the recipe's."""
    if all(text is None for text in instructions):
        return None
    default = embedder.renderer.instruction(role)
    return tuple(default if text is None else text for text in instructions)


def _demonstrations(
    batch: Batch, row: BatchRow, instruction: str, batching: Batching, rng: np.random.Generator
) -> tuple[dict[str, str], ...]:
    """Return a random number of examples: other queries of the batch with their positives.

    There are at most `batching.demonstrations` of them (BGE-ICL).
    """
    others = [other for other in batch.rows if other.query != row.query]
    count = min(len(others), int(rng.integers(batching.demonstrations + 1)))
    chosen = rng.permutation(len(others))[:count]
    return tuple(
        {
            "instruct": instruction,
            "query": others[int(i)].query,
            "response": others[int(i)].documents[0],
        }
        for i in chosen
    )


def length_of(limit: int | dict[str, int] | None, role: str | None) -> int | None:
    """Return the limit of a role's texts; None: the recipe's."""
    if isinstance(limit, dict):
        return limit.get(role or "default", limit.get("document"))
    return limit
