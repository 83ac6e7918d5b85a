"""A search index: passages, the embedder that encodes them, and the store of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from embedlm.errors import InputError, UnsupportedError, closest
from embedlm.jobs import progress
from embedlm.readout.embeddings import as_embeddings
from embedlm.schema.arguments import check_arguments
from embedlm.schema.recipe import MultiVector, Sparse
from embedlm.search.exact import ExactStore
from embedlm.search.fusion import DEFAULT, DEPTH, check_method, fuse, ordered
from embedlm.search.passages import Passage
from embedlm.search.store import Store

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["MODES", "Hit", "SearchIndex"]

MODES: dict[str, tuple[str, ...]] = {
    "dense": ("dense",),
    "sparse": ("sparse",),
    "hybrid": ("dense", "sparse"),
    "late-interaction": ("multi_vector",),
}
"""The heads that each mode compares; several are fused, by default as in PromptReps."""


_AT_ONCE = 1024
"""Passages that are embedded in one call; progress is shown after each."""
_MOST_PARTS = 64
"""Calls for one index: a store copies what it holds when documents are added."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that answers a query."""

    passage: Passage
    score: float
    rank: int
    """From 1."""


class SearchIndex:
    """Passages, and a store that holds their embeddings."""

    def __init__(
        self,
        model: Embedder,
        passages: Sequence[Passage],
        mode: str = "dense",
        *,
        store: Store | None = None,
        fusion: str | None = None,
        show_progress: bool | Literal["lines"] | None = None,
    ) -> None:
        """Embed the passages.

        Args:
            model: embeds passages and queries.
            passages: what is searched, in the order of their files.
            mode: one of `MODES`.
            store: an empty store for the vectors; None makes an `ExactStore`.
            fusion: how a hybrid search fuses its rankings, see `search.fuse`; None: min_max.
            show_progress: None shows a bar for long jobs on a terminal; "lines" also writes a line
                now and then where there is no terminal.

        Raises:
            InputError: an unknown mode or fusion, one that the mode has no use for, or a store
                that is not empty.
        """
        if mode not in MODES:
            raise InputError(
                f"search mode {mode!r} is not known; allowed: {', '.join(MODES)}."
                + closest(mode, list(MODES))
            )
        if fusion is not None and len(MODES[mode]) == 1:
            raise InputError(
                f"fusion is of a hybrid search, and the mode {mode!r} has one ranking; leave it out"
            )
        if fusion is not None:
            check_method(fusion)
        store = _exact_store(model) if store is None else store
        if len(store):
            raise InputError(f"the store holds {len(store)} documents; give an empty one")
        self.model = model
        self.passages = list(passages)
        self.heads = list(MODES[mode])
        self.fusion = fusion or DEFAULT
        self.store: Store = store
        self._by_id: dict[str, Passage] = {}
        if self.passages:
            self._fill(show_progress)

    def _fill(self, show_progress: bool | Literal["lines"] | None) -> None:
        """Embed the passages and put their vectors into the store."""
        texts = [passage.text for passage in self.passages]
        # Numbers of equal length: stores order equal scores by id, and so by file and line.
        width = len(str(len(texts)))
        self._by_id = {f"{i:0{width}}": passage for i, passage in enumerate(self.passages)}
        ids = list(self._by_id)
        step = max(_AT_ONCE, -(-len(texts) // _MOST_PARTS))
        with progress(show_progress, len(texts), unit="passage", label="embed") as advance:
            for start in range(0, len(texts), step):
                part = slice(start, start + step)
                embeddings = as_embeddings(
                    self.model.encode_document(texts[part], heads=self.heads, show_progress=False)
                )
                self.store.add(ids[part], {head: embeddings[head] for head in self.heads})
                advance(len(ids[part]))

    def search(self, query: str, top_k: int = 10, *, instruction: str | None = None) -> list[Hit]:
        """Return the best passages for a query, best first; equal scores in the files' order.

        A hybrid search fuses the best 1,000 passages of each head.

        Args:
            query: the question, or words to look for.
            top_k: hits, at most.
            instruction: fills the query's prompt; None takes the recipe's.

        Raises:
            InputError: an empty query, or top_k below 1.
        """
        check_arguments("search", query=query, top_k=top_k, instruction=instruction)
        if not query.strip():
            raise InputError("the query is empty; say what to look for")
        if not self.passages:
            return []
        query_vectors = as_embeddings(
            self.model.encode_query([query], heads=self.heads, instruction=instruction)
        )
        depth = top_k if len(self.heads) == 1 else DEPTH
        runs = [dict(self.store.search(head, query_vectors[head], depth)[0]) for head in self.heads]
        scores = runs[0] if len(runs) == 1 else fuse(runs, self.fusion)
        best = ordered(scores)[:top_k]
        return [Hit(self._by_id[id_], score, rank) for rank, (id_, score) in enumerate(best, 1)]


def _exact_store(model: Embedder) -> ExactStore:
    """Return a store that scores as `model.similarity` does."""
    heads = model.recipe.heads
    mean = any(isinstance(head, MultiVector) and head.score == "mean" for head in heads)
    sparse = next((h.similarity for h in heads if isinstance(h, Sparse)), "dot")
    if sparse != "dot":
        raise UnsupportedError(
            f"recipe {model.recipe.name!r} compares sparse vectors by {sparse}, by which the exact "
            "store does not search; allowed: dot"
        )
    return ExactStore(similarity=model.recipe.similarity, length_normalize=mean)
