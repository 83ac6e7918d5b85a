"""A shorter way to a route whose body can be read: most requests take it."""

from __future__ import annotations

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
        """Return what answers a request."""
        usual = super().get_route_handler()
        taken = [field.alias for field in self.dependant.query_params]
        named = set(signature(self.endpoint).parameters)
        kind = get_type_hints(self.endpoint)["body"] if named == {"body", "request"} else Any
        body_of: TypeAdapter[Any] = TypeAdapter(kind)

        async def handler(given: Request) -> Response:
            if given.scope["query_string"] and self.path not in _ANYTHING:
                _check_query(self.path, given, taken)
            request = _Request(given.scope, given.receive)
            if "body" not in named or _media_type(request) != "application/json":
                return await usual(request)
            try:
                body = body_of.validate_python(await request.json())
            except RequestError:
                raise
            except (ValueError, RecursionError):  # pydantic's error is a ValueError
                return await usual(request)
            if kind is Any:
                return await usual(request)
            response: Response = await self.endpoint(body=body, request=request)
            return response

        return handler


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


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
