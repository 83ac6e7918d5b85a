"""MCP at `/mcp`, which is made once the server has begun: its library takes long to import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from embedlm.serving.service import Service

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

__all__ = ["Agents"]


class Agents:
    """Answers agents; those that ask first wait until it can."""

    def __init__(self, service: Service, host: str) -> None:
        """Take the service, and the address at which it will be served."""
        self._service, self._host = service, host
        self._ready: asyncio.Future[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        assert self._ready is not None, "it runs as long as the application"
        answer = await asyncio.shield(self._ready)
        await answer(scope, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer agents inside the block."""
        self._ready, ended = asyncio.get_running_loop().create_future(), asyncio.Event()
        task = asyncio.ensure_future(self._run(self._ready, ended))
        try:
            yield
        finally:
            ended.set()
            await task

    async def _run(self, ready: asyncio.Future[ASGIApp], ended: asyncio.Event) -> None:
        try:
            server, answer = await asyncio.to_thread(self._made)
        except Exception as error:
            ready.set_exception(error)
            ready.exception()  # which is told to those who ask
            return
        async with server.session_manager.run():
            ready.set_result(answer)
            await ended.wait()

    def _made(self) -> tuple[MCPServer, Any]:
        from embedlm.serving.mcp import mcp_server

        server = mcp_server(self._service)
        whole = server.streamable_http_app(
            streamable_http_path="/mcp", json_response=True, stateless_http=True, host=self._host
        )
        # Without sessions the server has nothing to say unasked: a stream of it, which clients open
        # by GET, would only hold up the server's end.
        (route,) = whole.routes
        return server, route.endpoint
