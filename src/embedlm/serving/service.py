"""The server behind its routes: models, mounted indexes, the batcher; one request's way through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from embedlm.encode.inputs import check_texts
from embedlm.encode.prefix_cache import summed
from embedlm.rerank import Reranker
from embedlm.serving.batcher import Batcher
from embedlm.serving.encoding import Encoding, Item, Output, Ranking, Served
from embedlm.serving.failures import (
    DepartedError,
    LateError,
    RequestError,
    TooLargeError,
    called,
)
from embedlm.serving.fair import Group, Job
from embedlm.serving.keys import Keys
from embedlm.serving.metrics import Metrics, Spent
from embedlm.serving.models import Models
from embedlm.serving.mounted import Mounted
from embedlm.serving.patience import SOON, Patience
from embedlm.serving.pictures import check_pixels
from embedlm.serving.processes import Process
from embedlm.serving.recipes import Recipes
from embedlm.serving.settings import Limits

__all__ = ["Caller", "Encoded", "Service", "Shortened", "caller_of", "service_of"]


Made = TypeVar("Made")

_SHORT = 4096
"""Characters that are tokenized at once: a thread would take longer to be told of them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    key: str
    """All who have one key wait in one line."""
    spent: Spent = field(default_factory=Spent)
    left: Callable[[], Awaitable[None]] | None = None
    """Ends when the caller has left; None: that cannot be told."""
    patience: Patience | None = None
    """Of the request; None: each wait has its own."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a request's texts gave."""

    outputs: list[Output]
    tokens: int
    truncated: list[int]
    """Texts that were shortened, which the request allowed."""


@dataclass(frozen=True, slots=True)
class Shortened:
    """What was shortened of the pairs of a query and documents."""

    query: bool
    documents: list[int]

    @property
    def names(self) -> list[str]:
        """What the header of an answer says."""
        return [*(["query"] if self.query else []), *map(str, self.documents)]


class OfModel(Group, Protocol):
    """What runs the items of jobs, by a model."""

    @property
    def served(self) -> Served:
        """The model."""
        ...


class Service:
    """All that a server is, apart from HTTP."""

    def __init__(
        self,
        models: Models,
        indexes: Mapping[str, Mounted] | None = None,
        *,
        keys: Keys | None = None,
        limits: Limits | None = None,
        processes: Sequence[Process] = (),
    ) -> None:
        """Join them.

        Args:
            models: that are served.
            indexes: by name, likewise.
            keys: of which a request must give one; None: the server is open.
            limits: of requests and queue.
            processes: that run the models, too; see `processes.forked`.
        """
        self.models = models
        self.indexes = dict(indexes or {})
        self.keys = keys or Keys()
        self.limits = limits or Limits()
        self.draining = False
        """Whether the server was told to end."""
        self.sent_ids: set[str] = set()
        """Models to which token ids were sent."""
        budget = self.limits.batch_tokens or self.models.budget
        self.models.keep_prefixes(self.limits.prefix_bytes // (1 + len(processes)))
        self.metrics = Metrics(
            lambda: (self.batcher.queue.count, self.batcher.queue.tokens),
            lambda: summed([models.prefix_counts(), *(one.prefixes for one in processes)]),
            lambda: self.batcher.workers,
        )
        self.batcher = Batcher(self.limits, budget, self.metrics.batch, processes, models.pack)
        self.recipes = Recipes()
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="embedlm-tokenize")
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="embedlm-beside")

    async def start(self) -> None:
        """Begin to serve."""
        await self.batcher.start()

    async def stop(self) -> None:
        """Finish what waits, and let go of the indexes."""
        await self.batcher.stop()
        for beside in (self._tokenizing, self._beside):
            beside.shutdown(wait=not self.batcher.ended)
        for mounted in self.indexes.values():
            mounted.close()

    # -- embedding and scoring ----------------------------------------------------------------

    async def encode(
        self,
        caller: Caller,
        encoding: Encoding,
        items: Sequence[Item],
        *,
        truncate: bool = False,
        instead: str = "shorten it",
    ) -> Encoded:
        """Return the outputs of texts, which run together with those of other requests.

        Args:
            caller: for whom.
            encoding: what is asked of which model.
            items: the texts.
            truncate: whether those that are too long are shortened.
            instead: what the caller can do where they are not; it ends the error.

        Raises:
            OverloadedError: too much waits.
            TooLongError: a text is longer than the model reads, and `truncate` is false.
            TooLargeError: too many texts or tokens.
            LateError: the time of a request is over.
            DepartedError: the client has left.
        """
        self.check_count(len(items))
        if encoding.pictured:
            check_pixels(items, self.limits.image_pixels)
        self.batcher.check_room()
        spent = caller.spent
        begun = time.perf_counter()
        with called(encoding.served.places):
            if encoding.length(items) <= _SHORT:
                prepared = encoding.prepare(items, truncate=truncate, instead=instead)
            else:
                loop = asyncio.get_running_loop()
                with self.batcher.expecting():
                    prepared = await loop.run_in_executor(
                        self._tokenizing,
                        lambda: encoding.prepare(items, truncate=truncate, instead=instead),
                    )
        spent.tokenize = time.perf_counter() - begun
        self._take(spent, encoding.served.name, prepared.tokens)
        outputs = await self.result(caller, encoding, prepared.items, prepared.tokens)
        return Encoded(outputs, spent.tokens, prepared.truncated)

    async def render(
        self, caller: Caller, encoding: Encoding, items: Sequence[Item]
    ) -> list[list[dict[str, Any]]]:
        """Return for each text the prompts that the model would see; see `shown_prompts`.

        Raises:
            OverloadedError: too much waits.
            TooLargeError: too many texts or tokens.
        """
        self.check_count(len(items))
        self.batcher.check_room()
        begun = time.perf_counter()
        with called(encoding.served.places):
            found = await self.beside(lambda: encoding.shown(items))
        caller.spent.tokenize = time.perf_counter() - begun
        tokens = [sum(len(prompt["ids"]) for prompt in prompts) for prompts in found]
        self._take(caller.spent, encoding.served.name, tokens)
        return found

    async def rank(
        self, caller: Caller, ranking: Ranking, query: str, documents: Sequence[str]
    ) -> tuple[list[float], Shortened]:
        """Return the score of each document for a query, and what was shortened; see `encode`."""
        self.check_count(len(documents))
        for texts in (query, documents):
            check_texts(texts)
        self.batcher.check_room()
        spent = caller.spent
        begun = time.perf_counter()
        pairs = [(query, document) for document in documents]
        reranker = ranking.served.model
        loop = asyncio.get_running_loop()
        with called(ranking.served.places), self.batcher.expecting():
            tokens, cut = await loop.run_in_executor(
                self._tokenizing, lambda: _measured(reranker, pairs, ranking.instruction)
            )
        spent.tokenize = time.perf_counter() - begun
        self._take(spent, ranking.served.name, tokens)
        return await self.result(caller, ranking, pairs, tokens), cut

    def _take(self, spent: Spent, model: str, tokens: list[int]) -> None:
        """Count a request's tokens.

        Raises:
            TooLargeError: more than the limit.
        """
        spent.model, spent.texts, spent.tokens = model, len(tokens), sum(tokens)
        self.check_tokens(spent.tokens)
        self.metrics.lengths(tokens)

    def check_tokens(self, count: int) -> None:
        """Refuse a request with too many tokens.

        Raises:
            TooLargeError: more than the limit.
        """
        if count > self.limits.request_tokens:
            raise TooLargeError(
                f"the request has {count:,} tokens, and {self.limits.request_tokens:,} are "
                "allowed; send fewer texts at once"
            )

    def check_count(self, count: int) -> None:
        """Refuse a request without texts, or with too many.

        Raises:
            RequestError: none.
            TooLargeError: more than the limit.
        """
        if count == 0:
            raise RequestError("there is no text in the request; give at least one")
        if count > self.limits.inputs:
            raise TooLargeError(
                f"the request has {count:,} texts, and {self.limits.inputs:,} are allowed; send "
                "fewer at once"
            )

    async def result(
        self, caller: Caller, group: OfModel, items: Sequence[Any], costs: Sequence[int]
    ) -> list[Any]:
        """Return what a group gives for items, run in turn with other requests' work.

        Raises:
            OverloadedError: too much waits.
            LateError: the time of a request is over.
            DepartedError: the client has left.
        """
        job = self.batcher.submit(caller.key, group, items, costs)
        try:
            with called(group.served.places):
                return await self._waited(caller, job)
        finally:
            spent = caller.spent
            started = asyncio.get_running_loop().time() if job.started is None else job.started
            spent.queue, spent.run = started - job.arrived, job.run_seconds

    async def _waited(self, caller: Caller, job: Job) -> list[Any]:
        """Wait for a job, its time, or for the caller to leave, whichever comes first."""
        loop, limit = asyncio.get_running_loop(), self.limits.timeout
        held: list[asyncio.Handle | asyncio.Future[Any]] = [job.future]

        def end(error: Exception) -> None:
            if not job.over:
                job.future.set_exception(error)

        def leave(left: asyncio.Future[None]) -> None:
            if not left.cancelled():
                left.exception()  # which says no more than that it has ended
                end(DepartedError("the client closed the connection"))

        def watch() -> None:
            if job.over:
                return
            due = job.arrived + limit
            held.append(loop.call_at(due, lambda: end(LateError.after(limit))))
            if caller.left is not None and due > loop.time():
                gone = asyncio.ensure_future(caller.left())
                gone.add_done_callback(leave)
                held.append(gone)

        patience = caller.patience or Patience(min(limit, SOON))
        patience.when_long(watch)
        try:
            return await job.future
        finally:
            if caller.patience is None:
                patience.end()
            for one in held:
                one.cancel()  # which changes nothing where it is done

    async def beside(self, call: Callable[[], Made]) -> Made:
        """Return what a call gives that would hold up requests if it ran between them."""
        return await asyncio.get_running_loop().run_in_executor(self._beside, call)

    # -- searching ----------------------------------------------------------------------------

    def index(self, name: str | None) -> Mounted:
        """Return a mounted index by its name; None: the first.

        Raises:
            UnknownNameError: no such index.
        """
        return Mounted.named(self.indexes, name)


def _measured(
    reranker: Reranker, pairs: list[tuple[str, str]], instruction: str | None
) -> tuple[list[int], Shortened]:
    """Return the tokens of each pair of one query, and what is shortened."""
    tokens = reranker.lengths(pairs, instruction=instruction)
    queries, documents = reranker.shortened(pairs, tokens)
    return tokens, Shortened(bool(queries), documents)


def service_of(request: Request) -> Service:
    """Return the service that a request is for."""
    service: Service = request.app.state.service
    return service


def caller_of(request: Request) -> Caller:
    """Return who made a request: the holder of a key, or a host where there are no keys."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    key: str | None = request.scope["embedlm.key"]
    host = request.client.host if request.client else ""
    return Caller(
        key or host, request.scope["embedlm.spent"], left, request.scope["embedlm.patience"]
    )
