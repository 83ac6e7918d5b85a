"""Search and embedding as tools for agents, by the Model Context Protocol (MCP).

The tools only read. Their results are typed, so that a client knows their form, and they are those
that the library gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
from collections.abc import Awaitable, Callable
from functools import wraps
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import numpy as np
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp.types import ToolAnnotations
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

import embedlm
from embedlm.errors import EmbedLMError, InputError
from embedlm.schema.arguments import check_names
from embedlm.search.catalogue import Entry
from embedlm.serving.encoding import Encoding
from embedlm.serving.failures import explained
from embedlm.serving.service import Caller, Service

__all__ = ["mcp_server", "serve_stdio"]

_CALLER = "mcp"
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,99}")
"""An id that is a whole number, as it is written."""
Call = TypeVar("Call", bound=Callable[..., Awaitable[Any]])


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a number, not true or false")
    return value


def _whole_or_text(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("id_type", "Input should be a text or a whole number")
    return value


Number = Annotated[int, BeforeValidator(_no_flag)]
"""A whole number; as text, too, since agents send it so."""
Id = Annotated[int | str, BeforeValidator(_whole_or_text)]


class SearchHit(BaseModel):
    """A document that answers the query, by its best passage."""

    id: str = Field(description="For fetch.")
    score: float
    text: str = Field(description="The passage.")
    file: str
    metadata: dict[str, Any]


class SearchResult(BaseModel):
    """Hits, best first."""

    hits: list[SearchHit]


class Document(BaseModel):
    """A document of an index."""

    id: str
    text: str = Field(description="Its passages, in order.")
    passages: list[str]
    file: str
    metadata: dict[str, Any]


class Vectors(BaseModel):
    """A vector for each text."""

    model: str
    dim: int
    vectors: list[list[float]]


class Scores(BaseModel):
    """A row for each text of `a`, with its score for each text of `b`."""

    scores: list[list[float]]


class _AsSent(FuncMetadata):
    """Leaves a text as it was sent, where the SDK may read it as JSON: "null" would be left out.

    What is no text may be sent as JSON in a text, as agents do.
    """

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as they are checked."""
        fields = self.arg_model.model_fields
        others = {
            name: value for name, value in data.items() if not _takes_text(fields[name].annotation)
        }
        return {**data, **super().pre_parse_json(others)}


def _takes_text(annotation: Any) -> bool:
    union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if union else (annotation,)
    return str in members


class _Server(MCPServer):
    """Refuses arguments that a tool does not take; they would be left out without a word."""

    _listed: list[Any] | None = None
    """The tools, which stay the same."""

    async def list_tools(self) -> list[Any]:
        """Return the tools, whose schemas say that there is no further argument."""
        if self._listed is None:
            self._listed = await super().list_tools()
            for tool in self._listed:
                tool.input_schema = {**tool.input_schema, "additionalProperties": False}
        return list(self._listed)

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        """Return what a tool answers.

        Raises:
            ToolError: an unknown argument, or one that cannot be read, in one line; and as there.
        """
        tools = {tool.name: tool.input_schema["properties"] for tool in await self.list_tools()}
        known = tools.get(name, {})
        # Null is an argument that is left out: models that fill in every field send it.
        given = {
            one: value
            for one, value in arguments.items()
            if value is not None or "default" not in known.get(one, {})
        }
        try:
            check_names(name, given, known if name in tools else given)
            return await super().call_tool(name, given, context)
        except InputError as error:
            raise ToolError(str(error)) from error
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                raise ToolError(explained(error.__cause__.errors())) from error.__cause__
            raise


def mcp_server(service: Service) -> Any:
    """Return the MCP server of a service, with the tools search, fetch, embed and similarity."""
    tools: list[tuple[str, Callable[..., Awaitable[Any]]]] = [
        ("Embed texts", _embed(service)),
        ("Compare texts", _similarity(service)),
    ]
    if service.indexes:
        tools = [
            ("Search documents", _search(service)),
            ("Fetch a document", _fetch(service)),
            *tools,
        ]
    hints = ToolAnnotations(
        read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    return _Server(
        "embedlm",
        version=embedlm.__version__,
        instructions=_instructions(service),
        tools=[_tool(title, call, hints) for title, call in tools],
    )


def _tool(title: str, call: Callable[..., Awaitable[Any]], hints: ToolAnnotations) -> Tool:
    tool = Tool.from_function(
        _told(call), name=call.__name__, title=title, annotations=hints, structured_output=True
    )
    known = {name: getattr(tool.fn_metadata, name) for name in FuncMetadata.model_fields}
    return tool.model_copy(update={"fn_metadata": _AsSent(**known)})


async def serve_stdio(service: Service) -> None:
    """Answer a client on standard input and output until it leaves, or a signal comes."""
    server = mcp_server(service)
    logging.getLogger("mcp").setLevel("ERROR")  # a refusal is the agent's to read
    await service.start()
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    def end() -> None:
        if ending:
            os._exit(130)
        ending.append(loop.create_task(_leave(service)))

    with contextlib.suppress(NotImplementedError):  # Windows
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(one, end)
    try:
        await server.run_stdio_async()
    finally:
        if not ending:
            await service.stop()


async def _leave(service: Service) -> None:
    """Let go of the indexes, and end: the thread that reads standard input can not be told to."""
    try:
        await service.stop()
    finally:
        os._exit(0)


def _instructions(service: Service) -> str:
    models = ", ".join(service.models.names)
    if not service.indexes:
        return f"Embeds and compares texts with the model {models}."
    listed = ", ".join(service.indexes)
    return f"Searches the indexes {listed}: search, then fetch a hit by its id. Models: {models}."


def _told(call: Call) -> Call:
    """Return a tool whose errors of ours are a tool's, so that the agent reads the words."""

    @wraps(call)
    async def told(*given: Any, **named: Any) -> Any:
        try:
            return await call(*given, **named)
        except EmbedLMError as error:
            raise ToolError(str(error)) from error

    return told  # type: ignore[return-value]


def _search(service: Service) -> Callable[..., Awaitable[SearchResult]]:
    async def search(
        query: str,
        k: Number = 10,
        mode: str | None = None,
        filters: dict[str, Any] | None = None,
        index: str | None = None,
    ) -> SearchResult:
        """Find the documents that answer a query best.

        Args:
            query: a question, or words to look for.
            k: how many documents, at most.
            mode: hybrid, dense, sparse, bm25 or late-interaction, as far as the index has them;
                without it hybrid, or late-interaction where images are found by nothing else.
            filters: of metadata, e.g. {"type": "eq", "key": "lang", "value": "en"}.
            index: its name; without it the first.
        """
        if k < 1:
            raise InputError(f"k is {k}; give a number above 0 (1, 2, 3, ...)")
        options: dict[str, Any] = {"mode": mode}
        if filters is not None:
            options["where"] = filters
        mounted = service.index(index)
        hits = await mounted.search(service, Caller(_CALLER), query, k, **options)
        return SearchResult(
            hits=[
                SearchHit(
                    id=_spelled(hit.id),
                    score=hit.score,
                    text=hit.text,
                    file=hit.file,
                    metadata={**hit.shown_image, **hit.metadata},
                )
                for hit in hits
            ]
        )

    return search


def _fetch(service: Service) -> Callable[..., Awaitable[Document]]:
    async def fetch(id: Id, index: str | None = None) -> Document:
        """Return a document of an index whole.

        Args:
            id: as search gave it.
            index: its name; without it the first.
        """
        mounted = service.index(index)
        entries: list[Entry] = []
        for one in _read(id):
            entries = entries or await mounted.fetch(one)
        if not entries:
            raise ToolError(f"there is no document {id!r} in the index {mounted.name!r}")
        passages = [entry.text for entry in sorted(entries, key=lambda entry: entry.chunk)]
        first = entries[0]
        return Document(
            id=_spelled(first.id),
            text="\n".join(passages),
            passages=passages,
            file=first.file,
            metadata=dict(first.metadata),
        )

    return fetch


def _spelled(id: str | int) -> str:
    """Return an id as agents have it: a number as it is, a text that looks like one in quotes."""
    if isinstance(id, int) or not (_NUMBER.fullmatch(id) or id.startswith('"')):
        return str(id)
    return json.dumps(id, ensure_ascii=False)


def _read(spelled: str | int) -> list[str | int]:
    """Return the ids that a spelling may stand for, the likeliest first."""
    if isinstance(spelled, int):
        return [spelled, str(spelled)]
    if _NUMBER.fullmatch(spelled):
        return [int(spelled), spelled]
    try:
        found = json.loads(spelled) if spelled.startswith('"') else spelled
    except ValueError:
        found = spelled
    return [found, spelled]


def _embed(service: Service) -> Callable[..., Awaitable[Vectors]]:
    async def embed(
        texts: list[str],
        role: str | None = None,
        instruction: str | None = None,
        model: str | None = None,
    ) -> Vectors:
        """Return a vector for each text.

        Args:
            texts: to be embedded.
            role: query, document, or a name that the model defines.
            instruction: fills the model's prompt, where that has a place for it.
            model: its name; without it the first.
        """
        return await _vectors(service, texts, role, instruction, model)

    return embed


def _similarity(service: Service) -> Callable[..., Awaitable[Scores]]:
    async def similarity(a: list[str], b: list[str], model: str | None = None) -> Scores:
        """Return how alike each text of `a` is to each text of `b`.

        Args:
            a: texts.
            b: texts that they are compared with.
            model: its name; without it the first.
        """
        left = await _vectors(service, a, None, None, model)
        right = await _vectors(service, b, None, None, model)
        served, _ = service.models.embedder(model)
        sides = (np.array(side.vectors, dtype=np.float32) for side in (left, right))
        return Scores(scores=served.model.similarity(*sides).tolist())

    return similarity


async def _vectors(
    service: Service, texts: list[str], role: str | None, instruction: str | None, model: str | None
) -> Vectors:
    served, adapter = service.models.embedder(model)
    if not all(texts):
        raise InputError("a text is empty; leave it out")
    encoding = Encoding(
        served=served,
        role=role,
        heads='["dense"]',
        adapter=adapter,
        instructed=instruction is not None,
    )
    items = [(text, instruction) for text in texts]
    found = await service.encode(Caller(_CALLER), encoding, items)
    vectors = [output["dense"].tolist() for output in found.outputs]
    return Vectors(model=model or served.name, dim=len(vectors[0]), vectors=vectors)
