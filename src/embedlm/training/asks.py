"""What the texts of a batch are asked to be embedded with: role, instruction, examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedlm._tuning_schema import Batching, Data
from embedlm.embedder import Embedder
from embedlm.training.batches import Batch, Row
from embedlm.training.student import Ask

__all__ = ["asks_of"]


def asks_of(
    embedder: Embedder,
    batch: Batch,
    kind: str,
    data: Sequence[Data],
    batching: Batching,
    rows: Sequence[Row],
    max_length: int | dict[str, int] | None,
    chance: np.random.Generator,
    views: int = 2,
) -> list[Ask]:
    """Return the texts of some of a batch's rows: queries and documents, or both of each pair.

    Args:
        embedder: whose recipe says what stands around a text.
        batch: of the step.
        kind: of the records.
        data: the stage's data sets, with the instructions of each.
        batching: says how many examples a query may have.
        rows: those of the batch that this process embeds.
        max_length: in tokens, for all or by role.
        chance: draws examples.
        views: how often a bare text is embedded, by dropout each time otherwise.
    """
    queries = tuple(row.query for row in rows)
    if kind == "texts":
        return [Ask(queries, None, max_length=_length(max_length, None))] * views
    documents = tuple(text for row in rows for text in row.documents)
    sources = [row.source for row in rows for _ in row.documents]
    roles = ("query", "document") if kind == "groups" else (None, None)
    given = [data[row.source].instruction for row in rows]
    of_documents = [data[source].document_instruction for source in sources]
    if kind == "pairs":
        of_documents = list(given)
    shots = None
    if batching.demonstrations and kind == "groups":
        own = embedder.renderer.instruction("query")
        asked = [own if one is None else one for one in given]
        shots = tuple(
            _shots(batch, row, instruction, batching, chance)
            for row, instruction in zip(rows, asked, strict=True)
        )
    return [
        Ask(
            queries,
            roles[0],
            _instructions(embedder, given, roles[0]),
            shots,
            _length(max_length, roles[0]),
        ),
        Ask(
            documents,
            roles[1],
            _instructions(embedder, of_documents, roles[1]),
            max_length=_length(max_length, roles[1]),
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
    batch: Batch, row: Row, instruction: str, batching: Batching, chance: np.random.Generator
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
