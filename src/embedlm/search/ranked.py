"""The documents that answer queries best, from the matches of each ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from embedlm.errors import InputError, UnsupportedError
from embedlm.search.catalogue import Catalogue, Entry
from embedlm.search.fusion import DEFAULT, check_method, fuse, ordered
from embedlm.search.store import Match

__all__ = ["DEPTH", "Ranking", "Reranks", "best_documents"]

DEPTH = 200
"""Passages of each ranking that are fused: the best number for `min_max`, see docs/results.md."""
_INVERTED = ("sparse", "bm25")
_READ = 64
"""Passages that are read at once, at least; a search seldom needs all that were ranked."""

Asks = Callable[[list[int], int], list[list[list[Match]]]]
"""From places of queries, and a number, to so many matches of each query, by head."""


class Reranks(Protocol):
    """What re-ranks: `embedlm.Reranker`."""

    def rank(self, query: str, documents: Any, top_k: int | None = None) -> list[dict[str, Any]]:
        """Return places of documents and scores, best first."""
        ...


@dataclass(frozen=True, slots=True)
class Ranking:
    """How rankings become one; see `Index.search`."""

    top_k: int
    fusion: str = DEFAULT
    weights: Mapping[str, float] | None = None
    depth: int = DEPTH
    rerank: Reranks | None = None
    rerank_depth: int = 50

    def __post_init__(self) -> None:
        check_method(self.fusion)

    @property
    def wanted(self) -> int:
        """Documents that are looked for."""
        return max(self.top_k, self.rerank_depth if self.rerank is not None else 0)

    def shares(self, heads: Sequence[str]) -> list[float] | None:
        """Return the weight of each ranking."""
        if self.weights is None:
            return None
        if set(self.weights) != set(heads):
            raise InputError(
                f"weights were given for {', '.join(self.weights) or 'nothing'}, and this search "
                f"ranks by {', '.join(heads)}; give one for each"
            )
        return [self.weights[head] for head in heads]


def best_documents(
    queries: Sequence[str],
    heads: Sequence[str],
    ask: Asks,
    how: Ranking,
    held: tuple[Catalogue, int],
) -> list[list[tuple[Entry, float]]]:
    """Return the best passage of each document that answers a query, best first.

    Args:
        queries: searched for together at first, one by one where that was not far enough.
        heads: one for each ranking.
        ask: searches.
        how: rankings are joined.
        held: the passages of the index, and their number.
    """
    how.shares(heads)  # refused before anything is searched
    limit = how.wanted if len(heads) == 1 else max(how.depth, how.wanted)
    together = ask(list(range(len(queries))), limit)
    found = []
    for row, query in enumerate(queries):
        matches = [own[row] for own in together]
        best = _further(row, heads, ask, how, held, (limit, matches))
        if how.rerank is not None and best:
            _check_texts([entry for entry, _ in best[: how.rerank_depth]])
            ranked = how.rerank.rank(query, [e.text for e, _ in best[: how.rerank_depth]])
            best = [(best[one["corpus_id"]][0], one["score"]) for one in ranked]
        found.append(best[: how.top_k])
    return found


def _check_texts(entries: Sequence[Entry]) -> None:
    """Refuse passages with images, which a re-ranker does not see.

    Raises:
        UnsupportedError: names one.
    """
    seen = next((entry.image for entry in entries if entry.image is not None), None)
    if seen is not None:
        raise UnsupportedError(
            f"a re-ranker reads texts alone, and {seen!r} is an image among the best hits; search "
            "without --rerank (rerank=), or narrow the search down to texts (--where, where=)"
        )


def _further(
    row: int,
    heads: Sequence[str],
    ask: Asks,
    how: Ranking,
    held: tuple[Catalogue, int],
    begun: tuple[int, list[list[Match]]],
) -> list[tuple[Entry, float]]:
    """Return the documents of one query; where chunks of few take all places, look further."""
    (limit, found), (catalogue, total) = begun, held
    while True:
        # The exact store also gives passages that share no term with the query.
        runs = [
            {m.id: m.score for m in matches if m.score or one not in _INVERTED}
            for one, matches in zip(heads, found, strict=True)
        ]
        several = len(runs) > 1
        scores = fuse(runs, how.fusion, how.shares(heads), depth=limit) if several else runs[0]
        best = _by_document(ordered(scores), how.wanted, catalogue)
        enough = len(best) >= how.wanted or max(map(len, runs)) < limit
        if enough or limit >= total:
            return best
        limit *= 4
        found = [own[0] for own in ask([row], limit)]


def _by_document(
    ranked: Sequence[tuple[str, float]], wanted: int, catalogue: Catalogue
) -> list[tuple[Entry, float]]:
    best: dict[str, tuple[Entry, float]] = {}
    step = max(2 * wanted, _READ)
    for start in range(0, len(ranked), step):
        some = ranked[start : start + step]
        entries = catalogue.entries([key for key, _ in some])
        for key, score in some:
            entry = entries.get(key)
            if entry is None:
                raise InputError(
                    f"the store holds the passage {key!r}, and the catalogue {catalogue.path} does "
                    "not; the index is damaged: make it again"
                )
            best.setdefault(entry.document, (entry, score))
            if len(best) == wanted:
                return list(best.values())
    return list(best.values())
