"""Connections: HTTP/1.1 that waits for a request's headers so long and no longer."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEADERS", "protocol_of"]

HEADERS = 64 << 10
"""Bytes of a request's headers at most, where they do not come at once."""


_HELD = 64 << 10
"""Bytes of an answer that are held back at most until it is whole."""


class _Joined:
    """A transport that sends at once what is written at once: an answer's headers and its body.

    Each would be a system call of its own, and wake the client.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        """Give all else as the transport does."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send something when what runs now has ended."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > _HELD:
            self.flush()  # whoever writes on is told to wait by the transport

    def flush(self) -> None:
        """Send what was written."""
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            self._transport.write(data)

    def close(self) -> None:
        """Send what was written, and close."""
        self.flush()
        self._transport.close()


class _Patient:
    """Closes a connection whose next request does not bring its headers in time."""

    header_timeout = 10.0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        self._slow: asyncio.TimerHandle | None = None
        line: Any = self
        joined = transport if isinstance(transport, _Joined) else _Joined(transport, line.loop)
        super().connection_made(joined)  # type: ignore[misc]
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read on; a request that has begun must bring its headers in time."""
        super().data_received(data)  # type: ignore[misc]
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)  # type: ignore[misc]

    def _watch(self) -> None:
        line: Any = self
        if line.cycle is not None and not line.cycle.response_complete:
            self._stop()
        elif self._slow is None and not line.transport.is_closing():
            self._wait()

    def _wait(self) -> None:
        line: Any = self
        self._slow = line.loop.call_later(self.header_timeout, line.transport.close)

    def _stop(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


class _Plain(_Patient, H11Protocol):
    """Read by h11, which bounds headers itself (`h11_max_incomplete_event_size`)."""


class _Fast(_Patient, AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Read by httptools, which bounds nothing and reads no body after `Upgrade`."""

    def connection_made(self, transport: Any) -> None:
        """Begin to count."""
        self._advanced, self._unfinished, self._data = False, 0, b""
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Read on; bytes that are neither the last of headers nor of a body are counted."""
        self._advanced, self._data = False, data
        super().data_received(data)
        self._data = b""
        self._unfinished = 0 if self._advanced else self._unfinished + len(data)
        if self._unfinished > HEADERS and not self.transport.is_closing():
            self.send_400_response(f"The request's headers have more than {HEADERS} bytes.")

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._advanced = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take some of a body, be it one that nobody reads any more."""
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._advanced = True
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return True  # no other protocol is spoken here: h11 reads what stays HTTP/1.1

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to h11: Java's client offers h2c with each request, and its body."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.send_400_response("A request that asks for an upgrade must wait for its turn.")
            return
        read: int = sys.exc_info()[1].args[0]  # type: ignore[union-attr]  # HttpParserUpgrade
        head = [self.scope["method"].encode(), b" ", self.url]
        head += [b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            head += [name, b": ", value, b"\r\n"]
        other = _Plain(self.config, self.server_state, self.app_state, self.loop)
        other.header_timeout = self.header_timeout
        self._stop()
        self.connections.discard(self)
        transport, rest = self.transport, self._data[read:]
        transport.set_protocol(other)
        other.connection_made(transport)
        other.data_received(b"".join([*head, b"\r\n", rest]))

    def _watch(self) -> None:
        if self.transport.get_protocol() is self:
            super()._watch()


def protocol_of(header_timeout: float) -> type[asyncio.Protocol]:
    """Return what speaks HTTP/1.1: httptools where it is installed, or h11.

    Args:
        header_timeout: seconds that a request's headers may take.
    """
    kind: Any = _Plain if AutoHTTPProtocol is H11Protocol else _Fast
    return type("Protocol", (kind,), {"header_timeout": header_timeout})
