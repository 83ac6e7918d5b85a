"""Which documents are trained on, which choose the best step, and which say what was gained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedlm.errors import InputError
from embedlm.evaluation.statistics import clusters_of

__all__ = ["DEV", "HELD_OUT", "TRAIN", "Split", "split_documents"]

TRAIN, DEV, HELD_OUT = "train", "dev", "held_out"
_DEV = 0.1
"""Share of the documents by which the best step is chosen."""
_LARGEST = 0.5
"""Share of the documents that queries may join; above it queries are divided, not documents."""


@dataclass(frozen=True, slots=True)
class Split:
    """The part of each document, and of each query whose documents are in several."""

    by: str
    """document, or query: documents that share too many queries cannot be divided."""
    part: Mapping[str, str]
    """By the document's id, or by the query's text."""

    def of(self, query: str, document: str) -> str:
        """Return the part of a query."""
        return self.part[document] if self.by == "document" else self.part.get(query, TRAIN)

    def trains_on(self, document: str) -> bool:
        """Tell whether a document may be seen while the model is tuned."""
        return self.by == "query" or self.part[document] != HELD_OUT


def split_documents(
    documents: Sequence[str],
    shared: Mapping[str, Sequence[str]],
    held_out: float,
    seed: int,
) -> Split:
    """Divide documents at random, so that no query has documents in two parts.

    Args:
        documents: their ids.
        shared: the documents that answer a query, by its text.
        held_out: share of the documents that the model is evaluated on.
        seed: of the order in which documents are drawn.

    Raises:
        InputError: there are too few documents (or queries) for three parts.
    """
    keys: dict[str, list[str]] = {document: [document] for document in documents}
    for query, own in shared.items():
        for document in own:
            keys[document].append(f"\0{query}")
    groups = _groups(documents, [keys[document] for document in documents])
    if max(map(len, groups), default=0) > max(1.0, _LARGEST * len(documents)):
        return Split("query", _parts([[query] for query in shared], held_out, seed, "queries"))
    return Split("document", _parts(groups, held_out, seed, "documents"))


def _groups(documents: Sequence[str], keys: Sequence[Sequence[str]]) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for document, cluster in zip(documents, clusters_of(keys), strict=True):
        found.setdefault(cluster, []).append(document)
    return list(found.values())


def _parts(
    groups: Sequence[Sequence[str]], held_out: float, seed: int, what: str
) -> dict[str, str]:
    """Return the part of each member; each part has one group at least."""
    if len(groups) < 3:
        raise InputError(
            f"{what} that share no query: {len(groups)}, and at least 3 are needed: to learn from, "
            "to choose by, and to be evaluated on; give more documents"
        )
    total = sum(map(len, groups))
    order = sorted(groups, key=lambda group: _draw(seed, group))
    part: dict[str, str] = {}
    wanted = {HELD_OUT: held_out * total, DEV: _DEV * total}
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        short = [name for name, count in wanted.items() if count > 0]
        chosen = short[0] if short and left > 1 else TRAIN
        part |= dict.fromkeys(group, chosen)
        if chosen in wanted:
            wanted[chosen] -= len(group)
            if chosen == HELD_OUT and left - 1 == 2:  # dev and train need a group each
                wanted[HELD_OUT] = 0
    return part


def _draw(seed: int, group: Sequence[str]) -> str:
    return hashlib.sha256(f"{seed}\0{min(group)}".encode("utf-8", "surrogatepass")).hexdigest()
