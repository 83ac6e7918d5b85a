"""What the texts of a batch are asked to be embedded with: role, instruction, examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedlm.embedder import Embedder
from embedlm.schema.tuning import Batching, Stage
from embedlm.training.batches import Batch, BatchRow
from embedlm.training.named_adapters import adapter_of
from embedlm.training.trainable import TextRequest

__all__ = ["requests_of"]


def requests_of(
    embedder: Embedder,
    stage: Stage,
    batch: Batch,
    kind: str,
    rows: Sequence[BatchRow],
    chance: np.random.Generator,
) -> list[TextRequest]:
    """Return the texts of some of a batch's rows: queries and documents, or both of each pair.

    Args:
        embedder: whose recipe says what stands around a text.
        stage: says lengths, examples, and each data set's instructions and adapters.
        batch: of the step.
        kind: of the records.
        rows: those of the batch that this process embeds.
        chance: draws examples.
    """
    queries, data, limit = tuple(row.query for row in rows), stage.data, stage.max_length
    source = rows[0].source if rows else 0
    if kind == "texts":
        # SimCSE embeds a text twice, by dropout each time otherwise.
        views = 2 if any(loss.kind == "simcse" for loss in stage.objective) else 1
        own = adapter_of(stage, source, None)
        return [TextRequest(queries, None, max_length=_length(limit, None), adapter=own)] * views
    documents = tuple(text for row in rows for text in row.documents)
    sources = [row.source for row in rows for _ in row.documents]
    roles = ("query", "document") if kind == "groups" else (None, None)
    given = [data[row.source].instruction for row in rows]
    of_documents = [data[source].document_instruction for source in sources]
    if kind == "pairs":
        of_documents = list(given)
    shots = None
    if stage.batching.demonstrations and kind == "groups":
        own = embedder.renderer.instruction("query")
        asked = [own if one is None else one for one in given]
        shots = tuple(
            _shots(batch, row, instruction, stage.batching, chance)
            for row, instruction in zip(rows, asked, strict=True)
        )
    return [
        TextRequest(
            queries,
            roles[0],
            _instructions(embedder, given, roles[0]),
            shots,
            _length(limit, roles[0]),
            adapter_of(stage, source, roles[0]),
        ),
        TextRequest(
            documents,
            roles[1],
            _instructions(embedder, of_documents, roles[1]),
            max_length=_length(limit, roles[1]),
            adapter=adapter_of(stage, source, roles[1]),
        ),
    ]


def _instructions(
    embedder: Embedder, given: Sequence[str | None], role: str | None
) -> tuple[str, ...] | None:
    """Return an instruction a text: its set's, else the recipe's own."""
    if all(one is None for one in given):
        return None
    own = embedder.renderer.instruction(role)
    return tuple(own if one is None else one for one in given)


def _shots(
    batch: Batch, row: BatchRow, instruction: str, batching: Batching, chance: np.random.Generator
) -> tuple[dict[str, str], ...]:
    """Return up to so many other queries of the batch with their positives (BGE-ICL)."""
    others = [other for other in batch.rows if other.query != row.query]
    count = min(len(others), int(chance.integers(batching.demonstrations + 1)))
    chosen = chance.permutation(len(others))[:count]
    return tuple(
        {
            "instruct": instruction,
            "query": others[int(i)].query,
            "response": others[int(i)].documents[0],
        }
        for i in chosen
    )


def _length(given: int | dict[str, int] | None, role: str | None) -> int | None:
    if isinstance(given, dict):
        return given.get(role or "default", given.get("document"))
    return given
