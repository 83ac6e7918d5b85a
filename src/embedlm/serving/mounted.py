"""Indexes that a server searches."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from scipy.sparse import csr_matrix, vstack

from embedlm.embedder import Embedder
from embedlm.errors import EmbedLMError, InputError, closest
from embedlm.search import Found, Index, query_of
from embedlm.search.catalogue import Entry
from embedlm.search.layout import check_model, load_model, read_index
from embedlm.serving.encoding import Encoding, Item, Served
from embedlm.serving.failures import UnavailableError, UnknownNameError, called
from embedlm.serving.models import short_name

__all__ = ["Mounted"]

log = logging.getLogger(__name__)


class Encodes(Protocol):
    """What embeds queries: `Service`, in its batches."""

    async def encode(self, caller: Any, encoding: Encoding, items: Sequence[Item]) -> Any:
        """Return what `Service.encode` returns."""
        ...


class Mounted:
    """An index under a name, with the model that embeds its queries.

    A change of the index by `embedlm index` is seen at the next search.
    """

    def __init__(self, name: str, index: Index, served: Served) -> None:
        self.name, self.served = name, served
        self.index = index
        self._places = {str(index.path): name, str(index.path.resolve()): name}
        self._generation = index.facts["generation"]
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"embedlm-index-{name}")

    @classmethod
    def open(
        cls, name: str, path: str | Path, served: Sequence[Served] = (), device: Any = None
    ) -> Self:
        """Open an index with the model that it was made with: a served one, or its own.

        Raises:
            InputError: no index, or a damaged one.
            JobError: another process has it open.
        """
        root = Path(path)
        facts = read_index(root)
        for one in served:
            if _is_of(facts, one.model, root):
                return cls(name, Index.open(root, one.model), one)
        own = load_model(facts, root, device)
        return cls(name, Index.open(root, own), Served(short_name(own.name), own))

    @staticmethod
    def named(mounted: Mapping[str, Mounted], name: str | None) -> Mounted:
        """Return an index by its name; None: the first.

        Raises:
            UnknownNameError: no such index.
        """
        if not mounted:
            raise UnknownNameError("no index is served; start the server with --index")
        if name is None:
            return next(iter(mounted.values()))
        if name not in mounted:
            raise UnknownNameError(
                f"the index {name!r} is not served; there are: {', '.join(mounted)}."
                f"{closest(name, list(mounted))}"
            )
        return mounted[name]

    async def search(
        self, service: Encodes, caller: Any, query: Any, top_k: int, **options: Any
    ) -> list[Found]:
        """Return the documents that answer a query best.

        Args:
            service: embeds the query.
            caller: for whom.
            query: what is looked for: a text, or an image with or without one.
            top_k: documents, at most.
            **options: of `Index.search`.

        Raises:
            InputError: an empty query, or an option that the index cannot serve.
        """
        (hits,) = await self.search_all(service, caller, [query], top_k, **options)
        return hits

    async def search_all(
        self, service: Encodes, caller: Any, queries: Sequence[Any], top_k: int, **options: Any
    ) -> list[list[Found]]:
        """Return for each query what `search` does; all are embedded together.

        Args:
            service: embeds the queries.
            caller: for whom.
            queries: what is looked for.
            top_k: documents for each, at most.
            **options: of `Index.search`.

        Raises:
            InputError: an empty query, or an option that the index cannot serve.
        """
        with called({**self.served.places, **self._places}):
            return await self._found(service, caller, queries, top_k, **options)

    async def _found(
        self, service: Encodes, caller: Any, queries: Sequence[Any], top_k: int, **options: Any
    ) -> list[list[Found]]:
        asking, instruction = [query_of(query) for query in queries], options.get("instruction")
        mode = options.pop("mode", None)
        if mode is None:
            mode = self.index.mode_of(asking[0]) if asking else "hybrid"
        heads = self.index.query_heads(mode)
        vectors: dict[str, Any] | None = None
        if heads and asking:
            encoding = Encoding(
                served=self.served,
                role="query",
                heads=json.dumps(heads),
                instructed=instruction is not None,
                pictured=any(query.image for query in asking),
            )
            items: list[Item] = [(query.item, instruction) for query in asking]
            found = (await service.encode(caller, encoding, items)).outputs
            terms = self.served.model.backbone.vocab_size
            vectors = {head: _rows([one[head] for one in found], terms) for head in heads}
        hits: list[list[Found]] = await self._run(
            lambda index: index.search_all(asking, top_k, mode=mode, vectors=vectors, **options)
        )
        return hits

    async def fetch(self, identifier: str | int) -> list[Entry]:
        """Return the passages of a document; an unknown id has none."""
        with called(self._places):
            entries: list[Entry] = await self._run(lambda index: index.fetch([identifier])[0])
        return entries

    async def _run(self, call: Callable[[Index], Any]) -> Any:
        def run() -> Any:
            return call(self._present())

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _present(self) -> Index:
        """Return the index, opened anew where it has changed.

        Raises:
            UnavailableError: it cannot be read.
        """
        with self._lock:
            try:
                found = read_index(self.index.path)
                if found["generation"] != self._generation:
                    opened = Index.open(self.index.path, self.index.model)
                    before, self.index = self.index, opened
                    self._generation = found["generation"]
                    _let_go(before)
            except EmbedLMError as error:
                log.warning("the index %r cannot be read now: %s", self.name, error)
                raise UnavailableError(
                    f"the index {self.name!r} cannot be read now: it was moved, is damaged, or is "
                    "open in another process; ask again later, or see the server's log"
                ) from error
            return self.index

    def close(self) -> None:
        """Let go of the folder."""
        self._thread.shutdown()
        _let_go(self.index)


def _let_go(index: Index) -> None:
    """Close an index of which nothing is wanted any more, and that must not hold anything up."""
    try:
        index.close()
    except EmbedLMError as error:
        log.warning("the index %s could not be closed: %s", index.path, error)


def _is_of(facts: Mapping[str, Any], model: Embedder, path: Path) -> bool:
    try:
        check_model(facts, model, path)
    except InputError:
        return False
    return True


def _rows(values: Sequence[Any], terms: int) -> Any:
    """Return outputs of texts, one each, as the library gives those of several."""
    if isinstance(values[0], tuple):
        rows = (csr_matrix((w, ids, [0, len(ids)]), shape=(1, terms)) for ids, w in values)
        return csr_matrix(vstack(list(rows)))
    return list(values) if values[0].ndim == 2 else np.stack(values)
