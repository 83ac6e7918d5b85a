"""An index on the disk: searched, read, and its queries embedded as its documents were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from embedlm.errors import InputError, closest
from embedlm.jobs.names import real_path
from embedlm.readout.embeddings import as_embeddings
from embedlm.schema.arguments import check_arguments, check_names
from embedlm.search.asked import (
    OF_MODEL,
    Found,
    Query,
    check_images,
    checked_vectors,
    query_of,
)
from embedlm.search.catalogue import Catalogue, Entry
from embedlm.search.chunks import Span, sentence_spans
from embedlm.search.documents import document_key
from embedlm.search.edge import EdgeStore
from embedlm.search.exact import ExactStore
from embedlm.search.filters import Filter, check_filter
from embedlm.search.forms import vector_form
from embedlm.search.layout import (
    CATALOGUE,
    check_model,
    load_model,
    open_store,
    read_index,
    restored,
    store_options,
)
from embedlm.search.lexical import Bm25, counts
from embedlm.search.pushed import check_state
from embedlm.search.ranked import Ranking, Reranks, best_documents
from embedlm.search.server import QdrantStore
from embedlm.search.snippets import best_sentence, nearest_sentences
from embedlm.search.store import Match
from embedlm.search.whole import check_passages

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Found", "Index"]

_MODES = {
    "dense": ("dense",),
    "sparse": ("sparse",),
    "bm25": ("bm25",),
    "hybrid": ("dense", "sparse", "bm25"),
    "late-interaction": ("multi_vector",),
}
"""The rankings of each mode; a hybrid search fuses those that the index has."""

_FURTHER = ("fusion", "weights", "depth", "rerank", "rerank_depth")
"""Options of a search that say how its rankings become one."""


class Index:
    """An index that `build_index` made; see `search`.

    One process at a time can have an index of Qdrant Edge open. A change of the index by another
    process is seen when it is opened again.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], store: Any, catalogue: Catalogue, model: Any
    ) -> None:
        self.path, self.facts = path, facts
        self.store: EdgeStore | ExactStore | QdrantStore = store
        self._catalogue = catalogue
        self._model: Embedder | None = model
        self._device: Any = None
        self._total = len(catalogue)
        self._with_words = self._total - catalogue.images(alone=True)
        self._has_images = catalogue.images() > 0

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Embedder | None = None,
        *,
        device: Any = None,
        place: str | None = None,
        collection: str | None = None,
        api_key: str | None = None,
    ) -> Self:
        """Open an index.

        Args:
            path: its folder.
            model: embeds queries; None loads the index's own when a search first needs it.
            device: of the model that is loaded.
            place: URL of the Qdrant server to which the index was pushed; None: its own store.
            collection: on the server; None: the index's name.
            api_key: of the server.

        Raises:
            InputError: no index, a damaged one, or another model.
            JobError: another process has it open.
        """
        root = Path(path)
        facts = read_index(root)
        folder = root / facts["generation"]
        if model is not None:
            model = restored(model, folder)
            check_model(facts, model, root)
        catalogue = Catalogue.open(folder / CATALOGUE, facts["analyzer"])
        if place is None:
            store: Any = open_store(facts, folder)
            check_passages(store, catalogue, root)
        else:
            name = collection or real_path(root).name
            store = QdrantStore(place, name, api_key=api_key, **store_options(facts))
            check_state(store, facts, catalogue, root)
        opened = cls(root, facts, store, catalogue, model)
        opened._device = device
        return opened

    def __len__(self) -> int:
        return self._total

    @property
    def model(self) -> Embedder:
        """The model of the index."""
        if self._model is None:
            self._model = load_model(self.facts, self.path, self._device)
        return self._model

    @property
    def modes(self) -> list[str]:
        """The modes of search that the index has vectors for."""
        heads = {*self.facts["heads"], "bm25"}
        return [mode for mode, wanted in _MODES.items() if mode == "hybrid" or heads & set(wanted)]

    def close(self) -> None:
        """Let go of the folder; called again, do nothing."""
        try:
            self._catalogue.close()
        finally:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading ------------------------------------------------------------------------------

    def fetch(self, ids: Sequence[str | int]) -> list[list[Entry]]:
        """Return the passages of documents, a list for each id; an unknown id has none."""
        keys = [document_key(one) for one in ids]
        held = self._catalogue.of_documents(keys)
        return [[entry for entry in held if entry.document == key] for key in keys]

    # -- searching ----------------------------------------------------------------------------

    def search(
        self,
        query: Any,
        top_k: int = 10,
        *,
        mode: str | None = None,
        where: Filter | None = None,
        instruction: str | None = None,
        fusion: str | None = None,
        weights: Mapping[str, float] | None = None,
        depth: int | None = None,
        rerank: Reranks | None = None,
        rerank_depth: int | None = None,
        exact: bool = False,
        sentences: bool = False,
        vectors: Mapping[str, Any] | None = None,
    ) -> list[Found]:
        """Return the documents that answer a query best, each by its best passage.

        Args:
            query: the question, or words to look for; an image, or `{"text": ..., "image": ...}`
                (see `Embedder.encode`), of models that read images.
            top_k: documents, at most.
            mode: one of `modes`; hybrid fuses dense, sparse and BM25, as far as the index has them.
                None: see `mode_of`.
            where: a filter of metadata, see `search.filters`.
            instruction: fills the query's prompt; None takes the recipe's.
            fusion: min_max (None), dbsf, rrf or weighted, see `search.fuse`.
            weights: of the rankings in a hybrid search, by name; None: equal ones.
            depth: passages of each ranking that are fused; None: 200.
            rerank: a `Reranker`, which orders the best `rerank_depth` passages anew; scores are
                then its own.
            rerank_depth: passages that it reads, `top_k` at least; None: 50, or `top_k`.
            exact: compare with every passage's full vector.
            sentences: have the model find the matching sentence of a passage that shares no word
                with the query, which takes an embedding of its sentences; without it that is the
                first one.
            vectors: of the query, by head, where it is embedded already: those of `query_heads`.

        Raises:
            InputError: an empty query, or a mode or an option that the index cannot serve.
            UnsupportedError: an image, of which the model, BM25 or the re-ranker reads nothing.
        """
        given: dict[str, Any] = {
            "mode": mode,
            "where": where,
            "instruction": instruction,
            "fusion": fusion,
            "weights": weights,
            "depth": depth,
            "rerank": rerank,
            "exact": exact,
            "rerank_depth": rerank_depth,
            "sentences": sentences,
            "vectors": vectors,
        }
        return self.search_all([query], top_k, **given)[0]

    def search_all(
        self,
        queries: Sequence[Any],
        top_k: int = 10,
        *,
        mode: str | None = None,
        where: Filter | None = None,
        instruction: str | None = None,
        vectors: Mapping[str, Any] | None = None,
        exact: bool = False,
        sentences: bool = False,
        **options: Any,
    ) -> list[list[Found]]:
        """Return for each of several queries what `search` does; they are embedded together.

        Args:
            queries: the questions.
            top_k: documents for each, at most.
            mode: see `search`, and so the others.
            where: see there.
            instruction: see there.
            vectors: of all queries, by head.
            exact: see there.
            sentences: see there.
            **options: fusion, weights, depth, rerank and rerank_depth, see there.

        Raises:
            InputError: an empty query, an unknown option, or one that the index cannot serve.
            UnsupportedError: see there.
        """
        given = {"mode": mode, "instruction": instruction, "exact": exact, "sentences": sentences}
        check_names("search_all", options, _FURTHER)
        check_arguments("search", queries=queries, top_k=top_k, vectors=vectors, **given, **options)
        asking = [query_of(query) for query in queries]
        how = Ranking(top_k, **options)
        if not asking:
            return []
        modes = [self.mode_of(one) if mode is None else mode for one in asking]
        if len(set(modes)) > 1:
            del given["mode"]
            one_by_one = []
            for at, (one, name) in enumerate(zip(asking, modes, strict=True)):
                own = vectors and {head: rows[at : at + 1] for head, rows in vectors.items()}
                more = {**given, **options, "where": where, "vectors": own}
                one_by_one += self.search_all([one], top_k, mode=name, **more)
            return one_by_one
        heads = self._heads(modes[0])
        check_images(asking, heads, options.get("rerank") is not None)
        if where is not None:
            where = check_filter(where)
        how.check(modes[0], heads)
        held = self._query_vectors(asking, heads, instruction, vectors)

        def ask(rows: list[int], limit: int) -> list[list[list[Match]]]:
            """Return the matches of some queries, by head."""
            asked = {head: vector_form(value).take(value, rows) for head, value in held.items()}
            return [
                self.store.search(head, asked[head], limit, where=where, exact=exact)
                for head in heads
            ]

        texts = [one.text for one in asking]
        found = best_documents(texts, heads, ask, how, (self._catalogue, self._total))
        return [self._found(q, own, sentences) for q, own in zip(asking, found, strict=True)]

    def mode_of(self, query: Any) -> str:
        """Return the mode in which a query is searched for where none is named.

        It is hybrid, or what the model alone gives (dense, late-interaction or sparse): for an
        image, and where a hybrid search would have only words to find images by.
        """
        lone = not query_of(query).text
        blind = self._has_images and not {"dense", "sparse"} & {*self.facts["heads"]}
        if not lone and not blind:
            return "hybrid"
        return next((mode for mode in OF_MODEL if mode in self.modes), "hybrid")

    def _heads(self, mode: str) -> list[str]:
        if mode not in _MODES:
            raise InputError(
                f"search mode {mode!r} is not known; allowed: {', '.join(_MODES)}."
                + closest(mode, list(_MODES))
            )
        held = {*self.facts["heads"], "bm25"}
        heads = [head for head in _MODES[mode] if head in held]
        if not heads:
            raise InputError(
                f"the index {str(self.path)!r} has no vectors for the mode {mode!r}; allowed: "
                f"{', '.join(self.modes)}"
            )
        return heads

    def query_heads(self, mode: str) -> list[str]:
        """Return the heads by which a search embeds its query; none for BM25.

        Raises:
            InputError: an unknown mode, or one that the index cannot serve.
        """
        return [head for head in self._heads(mode) if head != "bm25"]

    def _query_vectors(
        self,
        queries: Sequence[Query],
        heads: Sequence[str],
        instruction: str | None,
        given: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        vectors: dict[str, Any] = {}
        neural = [head for head in heads if head != "bm25"]
        if neural and given is not None:
            vectors = checked_vectors(given, neural, len(queries))
        elif neural:
            items = [query.item for query in queries]
            found = self.model.encode_query(items, heads=neural, instruction=instruction)
            embeddings = as_embeddings(found)
            vectors = {head: embeddings[head] for head in neural}
        elif instruction is not None:
            raise InputError("BM25 takes no instruction; leave it out, or take another mode")
        if "bm25" in heads:
            bm25 = Bm25(self.facts["average"], self.facts["analyzer"])
            texts = [query.text for query in queries]
            rows = [bm25.query(one, self._frequency(one), self._with_words) for one in texts]
            vectors["bm25"] = csr_matrix(vstack(rows))
        return vectors

    def _frequency(self, query: str) -> dict[int, int]:
        return self._catalogue.frequency(counts(query, self.facts["analyzer"], query=True))

    def _found(
        self, query: Query, best: Sequence[tuple[Entry, float]], by_model: bool
    ) -> list[Found]:
        spans = self._sentences(query, [entry.text for entry, _ in best], by_model)
        return [
            Found(
                entry.id,
                score,
                entry.text,
                rank,
                entry.file,
                entry.line,
                entry.chunk,
                entry.metadata,
                span,
                entry.image,
            )
            for rank, ((entry, score), span) in enumerate(zip(best, spans, strict=True), 1)
        ]

    def _sentences(self, query: Query, texts: Sequence[str], by_model: bool) -> list[Span]:
        """Return the matching sentence of each text: by rare words, else by the model."""
        frequency = self._frequency(query.text)
        analyzer = self.facts["analyzer"]
        asked = counts(query.text, analyzer, query=True)
        weights = {term: 1 / (1 + frequency.get(term, 0)) for term in asked}
        spans = [best_sentence(text, weights, analyzer) for text in texts]
        left = [i for i, span in enumerate(spans) if span is None and texts[i]]
        if left and by_model and self._model is not None and "dense" in self.facts["heads"]:
            found = nearest_sentences([texts[i] for i in left], self._scores(query, self._model))
            for i, span in zip(left, found, strict=True):
                spans[i] = span
        first = [(sentence_spans(text) or [(0, len(text))])[0] for text in texts]
        return [own or one for own, one in zip(spans, first, strict=True)]

    def _scores(
        self, query: Query, model: Embedder
    ) -> Callable[[list[str]], npt.NDArray[np.float32]]:
        def scores(sentences: list[str]) -> npt.NDArray[np.float32]:
            asked = model.encode_query([query.item], heads="dense", show_progress=False)
            read = model.encode_document(sentences, heads="dense", show_progress=False)
            return np.asarray(model.similarity(asked, read)[0], dtype=np.float32)

        return scores
