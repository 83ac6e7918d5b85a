"""What every request passes: the key, the size and time of its body, the log and the metrics."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from embedlm.errors import EmbedLMError
from embedlm.serving.answers import failed
from embedlm.serving.failures import (
    DepartedError,
    EndingError,
    LateError,
    RequestError,
    ServingError,
    TooLargeError,
)
from embedlm.serving.lines import Facts, tell
from embedlm.serving.metrics import Spent
from embedlm.serving.names import Names
from embedlm.serving.patience import SOON, Patience
from embedlm.serving.routes.quick import QuickRoute
from embedlm.serving.routes.status import OPEN
from embedlm.serving.service import Service
from embedlm.serving.tracing import Tracing

__all__ = ["TIMEOUT", "Door"]

_ids = random.Random()
"""Of requests; no system call, which would give the lock up, and no seed that others set."""
TIMEOUT = "x-embedlm-timeout"
"""The header by which a request asks for fewer seconds than the server allows."""

log = logging.getLogger("embedlm.serving")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Door:
    """Stands before the application, and goes the short way to the routes that have one."""

    def __init__(
        self,
        app: App,
        service: Service,
        tracing: Tracing | None = None,
        names: Names = Names(any=True),  # noqa: B008  # frozen
        quick: Mapping[tuple[str, str], QuickRoute] | None = None,
    ) -> None:
        self._app, self._service, self._tracing, self._names = app, service, tracing, names
        self._quick = quick or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, and tell of it when it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        asked, scope = scope, _as_routed(scope)
        scope["embedlm.spent"], scope["embedlm.key"] = Spent(), None
        answer = _Answer(send, self._service)
        span = None if self._tracing is None else self._tracing.begin(asked)
        try:
            await self._admitted(scope, receive, answer)
        except EmbedLMError as error:
            await answer.instead(failed(scope["path"], error), scope, receive)
        except ClientDisconnect:
            answer.status = DepartedError.status
        except asyncio.CancelledError:
            if not self._service.batcher.ended:
                raise
            await answer.instead(failed(scope["path"], EndingError()), scope, receive)
        except Exception as error:
            _tell_fault(error, answer.id)
            words = "a fault in the server; its log has more under this request's id"
            await answer.instead(failed(scope["path"], ServingError(words)), scope, receive)
        finally:
            facts = self._tell(scope, asked["method"], answer, time.perf_counter() - begun)
            if self._tracing is not None:
                self._tracing.end(span, facts)

    async def _admitted(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not self._service.keys.digests:
            self._names.check(headers.get(b"host", b""))
        if scope["path"] not in OPEN or scope["method"] == "POST":
            scope["embedlm.key"] = self._service.keys.check(_keys_in(headers))
        limits = self._service.limits
        seconds = _seconds(headers, limits.timeout)
        soon = min(SOON, seconds, limits.body_timeout)
        scope["embedlm.patience"] = patience = Patience(soon)
        body: bytes | None = None
        try:
            async with asyncio.timeout(None) as timer:
                time_left = _TimeLeft(timer, min(seconds, limits.body_timeout))
                patience.when_long(time_left.watch)
                if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                    body = await _whole(headers, receive, limits.body_bytes)
                time_left.ends(seconds)
                answer.time_left = time_left
                await self._answered(scope, body, receive, answer)
        except TimeoutError as error:
            if answer.time_left is None and limits.body_timeout <= seconds:
                raise _SlowBodyError(
                    f"the body did not come within {limits.body_timeout:g} seconds; send it at once"
                ) from error
            # What it waited for was cancelled, and leaves the queue.
            raise LateError.after(seconds) from error
        finally:
            patience.end()
            answer.time_left = None

    async def _answered(
        self, scope: Scope, body: bytes | None, receive: Receive, answer: _Answer
    ) -> None:
        """Have a request answered by its route, or by the framework where that must look at it."""
        route = None if body is None else self._quick.get((scope["method"], scope["path"]))
        if route is not None:
            scope["route"] = route
            given = _given(body, receive)
            response = await route.quickly(Request(scope, given), body)
            if response is not None:
                await response(scope, given, answer)
                return
        await self._app(scope, receive if body is None else _given(body, receive), answer)

    def _tell(self, scope: Scope, method: str, answer: _Answer, seconds: float) -> dict[str, Any]:
        # A route that is plain ASGI, as MCP's, leaves no name; and a path that is none is not kept.
        named = getattr(scope.get("route"), "path", None)
        route = named or (scope["path"] if scope["path"] == "/mcp" else "other")
        spent: Spent = scope["embedlm.spent"]
        self._service.metrics.request(route, answer.status, seconds, spent)
        facts = Facts(
            event="request",
            id=answer.id,
            method=method,
            route=route,
            status=answer.status,
            seconds=round(seconds, 6),
            client=(scope.get("client") or ("",))[0],
            key=scope["embedlm.key"],
        )
        if spent.texts:
            facts |= {
                "model": spent.model,
                "texts": spent.texts,
                "tokens": spent.tokens,
                "tokenize_seconds": round(spent.tokenize, 6),
                "queue_seconds": round(spent.queue, 6),
                "run_seconds": round(spent.run, 6),
            }
        quiet = route in OPEN and method != "POST" and answer.status < 400
        tell(log, logging.DEBUG if quiet else logging.INFO, facts)
        return facts


class _TimeLeft:
    """When a request's time is over; the timer of a short one is never set."""

    __slots__ = ("_begun", "_due", "_timer", "_watched")

    def __init__(self, timer: asyncio.Timeout, seconds: float) -> None:
        self._timer, self._watched = timer, False
        self._begun = asyncio.get_running_loop().time()
        self._due: float | None = self._begun + seconds

    def ends(self, seconds: float | None) -> None:
        """Say so many seconds after its begin it ends; None: never."""
        self._due = None if seconds is None else self._begun + seconds
        if self._watched:
            self._timer.reschedule(self._due)

    def watch(self) -> None:
        """Set the timer."""
        self._watched = True
        self._timer.reschedule(self._due)


class _SlowBodyError(LateError):
    """A body that came too slowly."""

    status, code = 408, "body_timeout"


class _Answer:
    """Sends an answer, and remembers its status."""

    def __init__(self, send: Send, service: Service) -> None:
        self._send, self._service = send, service
        self.id = f"{_ids.getrandbits(128):032x}"
        self.status = 0
        self.time_left: _TimeLeft | None = None
        """Once the body has come."""

    async def __call__(self, message: Message) -> None:
        """Send a part of it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.time_left is not None:
                self.time_left.ends(None)  # an answer that has begun is sent to its end
            message["headers"].append((b"x-request-id", self.id.encode()))
            if self._service.draining or self.status in (408, 413):
                # What the client still sends is not read; while draining it should go elsewhere.
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    async def instead(self, response: Response, scope: Scope, receive: Receive) -> None:
        """Send an error, unless an answer has begun."""
        if response.status_code == DepartedError.status:
            self.status = DepartedError.status
        elif not self.status:
            await response(scope, receive, self)


def _as_routed(scope: Scope) -> Scope:
    """Return a request as the routes have it: HEAD is a GET, of whose answer the body is not sent.

    A slash at the end is nothing: a redirect would name this server as its proxy does not, and
    many clients follow none with a body.
    """
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "method": method, "path": scope["path"].rstrip("/") or "/"}


async def _whole(headers: dict[bytes, bytes], receive: Receive, most: int) -> bytes:
    """Return the body, read to its end within a limit of bytes.

    Raises:
        TooLargeError: it has more bytes than are allowed.
        DepartedError: the client left before its end.
    """
    stated = headers.get(b"content-length", b"0")
    if stated.isdigit() and int(stated) > most:
        raise _too_large(most)
    return await _read(receive, most)


def _given(body: bytes | None, receive: Receive) -> Receive:
    """Return what gives a body that was read, and then what comes after it."""
    left: bytes | None = body

    async def replay() -> Message:
        nonlocal left
        if left is None:
            return await receive()
        message = {"type": "http.request", "body": left, "more_body": False}
        left = None
        return message

    return replay


async def _read(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DepartedError("the client closed the connection before the end of the body")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(
        f"the body has more than {most:,} bytes, which is the limit; send less at once"
    )


def _seconds(headers: dict[bytes, bytes], most: float) -> float:
    """Return how long a request may take, as its header says.

    Raises:
        RequestError: it says nothing that can be honoured.
    """
    given = headers.get(TIMEOUT.encode())
    if given is None:
        return most
    text = given.decode("latin-1")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= most:
        raise RequestError(
            f"{TIMEOUT} is {text!r}; give seconds above 0, up to the server's own {most:g}"
        )
    return seconds


def _keys_in(headers: dict[bytes, bytes]) -> list[str]:
    scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    given = [key.strip()] if scheme.lower() == "bearer" else []
    own = headers.get(b"x-api-key")
    return given if own is None else [*given, own.decode("latin-1")]


def _tell_fault(error: Exception, request: str) -> None:
    """Log where a fault was, without its message, which may hold a text."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    kind = type(error).__name__
    log.error(Facts(event="fault", id=request, error=kind, frames=places))
