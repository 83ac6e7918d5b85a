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
_RERANKED = 50
"""Documents that a re-ranker reads where nothing is said."""
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
    fusion: str | None = None
    weights: Mapping[str, float] | None = None
    depth: int | None = None
    rerank: Reranks | None = None
    rerank_depth: int | None = None

    def check(self, mode: str, heads: Sequence[str]) -> None:
        """Refuse what a search in a mode, which ranks by some heads, would pass over.

        Raises:
            InputError: names it.
        """
        given = [n for n in ("fusion", "weights", "depth") if getattr(self, n) is not None]
        if given and len(heads) == 1:
            raise InputError(
                f"{' and '.join(given)} can be given for a hybrid search, and the mode {mode!r} "
                f"ranks by {heads[0]} alone; leave out what is given"
            )
        self.shares(heads)
        if self.rerank_depth is None:
            return
        if self.rerank is None:
            raise InputError("rerank_depth says how many passages a re-ranker reads; give rerank")
        if self.rerank_depth < self.top_k:
            raise InputError(
                f"rerank_depth is {self.rerank_depth}, and {self.top_k} documents are asked for, "
                "which the re-ranker must all have read; give a higher one"
            )

    @property
    def read(self) -> int:
        """Documents that the re-ranker reads; 0: there is none."""
        if self.rerank is None:
            return 0
        return max(_RERANKED, self.top_k) if self.rerank_depth is None else self.rerank_depth

    def __post_init__(self) -> None:
        if self.fusion is not None:
            check_method(self.fusion)

    @property
    def wanted(self) -> int:
        """Documents that are looked for."""
        return max(self.top_k, self.read)

    def limit(self, heads: Sequence[str]) -> int:
        """Return how many passages of each ranking are asked for at first."""
        depth = DEPTH if self.depth is None else self.depth
        return self.wanted if len(heads) == 1 else max(depth, self.wanted)

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
    limit = how.limit(heads)
    together = ask(list(range(len(queries))), limit)
    found = []
    for row, query in enumerate(queries):
        matches = [own[row] for own in together]
        best = _further(row, heads, ask, how, held, (limit, matches))
        if how.rerank is not None and best:
            read = [entry for entry, _ in best[: how.read]]
            _check_texts(read)
            ranked = how.rerank.rank(query, [entry.text for entry in read])
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
        method, shares = how.fusion or DEFAULT, how.shares(heads)
        scores = fuse(runs, method, shares, depth=limit) if several else runs[0]
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
