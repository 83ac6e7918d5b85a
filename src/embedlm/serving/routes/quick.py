"""A shorter way to a route whose body can be read: most requests take it."""

from __future__ import annotations

import json
from inspect import signature
from typing import Any, get_type_hints

from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from embedlm.serving.bodies import read_json
from embedlm.serving.failures import RequestError
from embedlm.serving.routes.status import OPEN

__all__ = ["QuickRoute"]

_ANYTHING = (*OPEN, "/docs")
"""Routes of files and facts: what stands behind `?` has a cache fetch them anew, and no more."""


class _Request(Request):
    """A request whose JSON says each thing once."""

    async def json(self) -> Any:
        """Return what its body says."""
        return read_json(await self.body())


class QuickRoute(APIRoute):
    """A route that reads a body as FastAPI does, without its dependencies.

    What FastAPI would refuse goes its way, and gets its error; what it would pass over is refused.
    """

    def get_route_handler(self) -> Any:
        """Return what answers a request that came by the framework's way."""
        usual = super().get_route_handler()
        self._taken = [field.alias for field in self.dependant.query_params]
        named = set(signature(self.endpoint).parameters)
        hints = get_type_hints(self.endpoint, include_extras=True)
        self._body: TypeAdapter[Any] | None = (
            TypeAdapter(hints["body"]) if "body" in named else None
        )
        self._alone = named == {"body", "request"}

        async def handler(given: Request) -> Response:
            request = _Request(given.scope, given.receive)
            answer = await self.quickly(request)
            return await usual(request) if answer is None else answer

        return handler

    async def quickly(self, given: Request, body: bytes | None = None) -> Response | None:
        """Return the answer to a request whose body can be read; None: FastAPI must look at it.

        Args:
            given: the request.
            body: what it brought, where that has been received.

        Raises:
            RequestError: something stands behind `?` that is not taken, or twice in the body.
        """
        files = self.path in _ANYTHING and given.scope["method"] != "POST"
        if given.scope["query_string"] and not files:
            _check_query(self.path, given, self._taken)
        if self._body is None:
            return None
        if _media_type(given) != "application/json":
            _check_media_type(given, await given.body() if body is None else body)
            return None
        try:
            read = read_json(await given.body() if body is None else body)
            value = self._body.validate_python(read)
        except RequestError:  # which FastAPI would hide
            raise
        except (ValueError, RecursionError):  # pydantic's error is a ValueError
            return None
        if not self._alone:
            return None
        answer: Response = await self.endpoint(body=value, request=given)
        return answer


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_media_type(request: Request, body: bytes) -> None:
    """Refuse JSON that is not called so, as curl sends it; all else is FastAPI's matter.

    Raises:
        RequestError: says that the header is what lacks.
    """
    kind = _media_type(request)
    if kind.startswith("application/") and kind.endswith("+json"):
        return
    try:
        is_object = isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return
    if is_object:
        said = f"its content-type is {kind[:80]!r}" if kind else "it has no content-type"
        raise RequestError(
            f"the body is a JSON object, and {said}; send it with the header "
            "content-type: application/json"
        )


def _check_query(path: str, request: Request, taken: list[str]) -> None:
    """Refuse what stands behind `?` and is not taken; it would change nothing, without a word.

    Raises:
        RequestError: names it.
    """
    unknown = next((name for name in request.query_params if name not in taken), None)
    if unknown is not None:
        raise RequestError(
            f"{path} has no query parameter {unknown!r}; allowed: {', '.join(taken) or 'none'}"
        )
