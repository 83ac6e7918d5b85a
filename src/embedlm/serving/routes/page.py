"""The page at `/`: files that ask no other host for anything, and may run nothing but their own."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["FILES", "HEADERS", "ROUTES"]

_HERE = "embedlm.serving/page/"
_REPORT = "embedlm.studies.report/"
FILES = {
    "index.html": _HERE,
    "page.css": _REPORT,  # colours and marks are those of the reports
    "page.js": _REPORT,
    "own.css": _HERE,
    "app.js": _HERE,
    "settings.js": _HERE,
    "views.js": _HERE,
    "words.js": _HERE,
    "search.js": _HERE,
    "server.js": _HERE,
    "htm-preact.js": _HERE,
}
"""Where each file of the page lies."""
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def page(request: Request) -> Response:
    """Show the page: texts compared, what a model sees of them, and search."""
    return _answer("index.html")


async def page_file(name: str, request: Request) -> Response:
    """Return a file of the page."""
    if name not in FILES:
        raise HTTPException(404)
    return _answer(name)


def _answer(name: str) -> Response:
    kind = _KINDS[name.rpartition(".")[2]]
    return Response(_bytes(name), 200, HEADERS, f"{kind}; charset=utf-8")


@cache
def _bytes(name: str) -> bytes:
    package, _, folder = FILES[name].partition("/")
    return (files(package) / folder / name).read_bytes()


ROUTES = (("GET", "/", page), ("GET", "/page/{name}", page_file))
