"""Whether the server is well, its metrics, and its documentation."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from embedlm.serving.answers import as_json
from embedlm.serving.reference import reference
from embedlm.serving.routes.page import FILES, HEADERS
from embedlm.serving.service import service_of

__all__ = ["OPEN", "ROUTES"]


async def health(request: Request) -> Response:
    """Say whether new requests should come here: 200, or 503 once the server was told to end."""
    draining = service_of(request).draining
    status = "draining" if draining else "ok"
    return as_json({"status": status}, 503 if draining else 200)


async def ping(request: Request) -> Response:
    """Say that the process lives."""
    return as_json({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Return the metrics for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")


async def docs(request: Request) -> Response:
    """Return the documentation of all routes, a page that asks no other host for anything."""
    return HTMLResponse(reference(request.app.openapi()), headers=HEADERS)


ROUTES = (
    ("GET", "/health", health),
    ("GET", "/ping", ping),
    ("GET", "/metrics", metrics),
    ("GET", "/docs", docs),
)
OPEN = (
    *("/", "/health", "/ping", "/metrics"),
    *(f"/page/{name}" for name in FILES),
    "/page/{name}",  # their route, as the log names it
)
"""What is answered without a key, as by TEI; the page asks for it."""
