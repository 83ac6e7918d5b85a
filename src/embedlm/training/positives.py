"""Which texts of a batch are known to be positives of which of its queries.

A hard negative of one query may answer another, and the same query may stand in the data several
times, each time with another positive. Losses take these masks so that no positive is pushed away.

Shapes: B queries, M documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from embedlm.data import Group, Records
from embedlm.training.rows import BatchRow

__all__ = ["KnownPositives", "equal_queries", "known_positives"]


class KnownPositives:
    """The positives of every query in all data sets of a stage."""

    def __init__(self, sets: Iterable[Records]) -> None:
        self._by_query: dict[str, tuple[str, ...]] = {}
        for records in sets:
            for item in records.items:
                if isinstance(item, Group):
                    # Most queries have one record, whose tuple is shared, not copied.
                    known = self._by_query.get(item.query, ())
                    self._by_query[item.query] = known + item.positives

    def of(self, query: str) -> frozenset[str]:
        """Return all positives of a query, whichever record names them."""
        return frozenset(self._by_query.get(query, ()))


def known_positives(rows: Sequence[BatchRow]) -> Tensor:
    """Return the mask of the documents that are positives of a query, p_BM.

    Bare texts have no documents: a text is the positive of itself, however often it occurs.
    """
    documents = [text for row in rows for text in (row.documents or (row.query,))]
    columns = _positions(documents)
    mask_BM = torch.zeros(len(rows), len(documents), dtype=torch.bool)
    for index, row in enumerate(rows):
        for text in row.positives.union(row.documents[:1] or (row.query,)):
            mask_BM[index, columns.get(text, [])] = True
    return mask_BM


def equal_queries(rows: Sequence[BatchRow]) -> Tensor:
    """Return the mask of the queries that are the same text or a positive of each other, e_BB."""
    queries = _positions(row.query for row in rows)
    mask_BB = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for index, row in enumerate(rows):
        for text in row.positives.union(row.documents[:1], (row.query,)):
            mask_BB[index, queries.get(text, [])] = True
    return mask_BB | mask_BB.mT


def _positions(texts: Iterable[str]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        positions.setdefault(text, []).append(index)
    return positions
