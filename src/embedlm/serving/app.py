"""The application: all routes around one service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from inspect import signature
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import embedlm
from embedlm.errors import EmbedLMError
from embedlm.serving.agents import Agents
from embedlm.serving.answers import failed
from embedlm.serving.door import Door
from embedlm.serving.failures import NO_JSON, RequestError, ServingError, explained
from embedlm.serving.names import Names
from embedlm.serving.responses import responses_of
from embedlm.serving.routes import cohere, explore, openai, own, page, status, tei
from embedlm.serving.routes.quick import QuickRoute
from embedlm.serving.service import Service
from embedlm.serving.tracing import Tracing

__all__ = ["create_app"]

ROUTES = (
    *openai.ROUTES,
    *tei.ROUTES,
    *cohere.ROUTES,
    *own.ROUTES,
    *explore.ROUTES,
    *page.ROUTES,
    *status.ROUTES,
)


def create_app(
    service: Service, *, host: str = "127.0.0.1", tracing: Tracing | None = None
) -> FastAPI:
    """Return the application of a service, for any ASGI server; with MCP at `/mcp`.

    Args:
        service: the models, indexes, keys and limits.
        host: where it will listen. At this machine's own address only requests that name it so
            are answered, unless there are keys: no page of another site can make a browser send
            such a one.
        tracing: makes spans of requests; None: there are none.
    """
    app = _Application(
        title="EmbedLM",
        version=embedlm.__version__,
        description="Embeddings, re-ranking and search.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        **_UNTRACED,
    )
    app.router.route_class = QuickRoute
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.agents = None
    app.state.tracing = tracing
    for method, path, answer in ROUTES:
        app.add_api_route(
            path,
            answer,
            methods=[method],
            response_model=None,
            name=answer.__name__,
            responses=responses_of(path, method),
        )
    if find_spec("mcp") is not None:
        app.state.agents = Agents(service, host)
        app.router.routes.append(Route("/mcp", app.state.agents, methods=["POST"]))
    app.add_exception_handler(EmbedLMError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    quick = {
        (method, route.path): route
        for route in app.routes
        if isinstance(route, QuickRoute)
        for method in route.methods or ()
    }
    names = Names.at(host)
    app.door = partial(Door, service=service, tracing=tracing, names=names, quick=quick)
    return app


_UNTRACED: dict[str, Any] = (
    {"telemetry": dict.fromkeys(("tracing", "metrics", "logs"), False)}
    if "telemetry" in signature(FastAPI.__init__).parameters
    else {}
)
"""Spans are `Tracing`'s: those of newer frameworks would be a second one of each request."""


class _Application(FastAPI):
    """An application with a door before the framework's own layers, which it goes round."""

    door: Callable[[ASGIApp], ASGIApp]

    def build_middleware_stack(self) -> ASGIApp:
        """Return all layers, the door first."""
        return self.door(super().build_middleware_stack())


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    async with AsyncExitStack() as stack:
        if app.state.agents is not None:
            await stack.enter_async_context(app.state.agents.running())
        await service.start()
        yield
        await service.stop()
        if app.state.tracing is not None:
            app.state.tracing.close()


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, EmbedLMError):
        raise error
    return failed(request.url.path, error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return failed(request.url.path, RequestError(explained(error.errors())))


class _HttpError(ServingError):
    """What the framework refuses: an unknown path, another method."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
        self.kind = "Validation"


async def _on_http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path
    words = {
        400: NO_JSON,
        404: f"there is no route {path}; /docs lists them",
        405: f"{path} does not answer {request.method}; /docs lists the routes",
    }
    response = failed(
        path, _HttpError(error.status_code, words.get(error.status_code, error.detail))
    )
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
