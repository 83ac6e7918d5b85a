"""Running the application: the socket, signals, and the end without a lost answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from embedlm.errors import InputError
from embedlm.serving.lines import Facts
from embedlm.serving.names import Names
from embedlm.serving.protocol import HEADERS, protocol_of
from embedlm.serving.service import Service

__all__ = ["Server", "listen", "server_of"]

log = logging.getLogger("embedlm.serving")

_GARBAGE = (20_000, 20, 20)
"""Objects after which Python looks for cycles among them: requests make few, and each look stops
all that is being answered."""
_OPEN = (
    "all machines that reach this address may use the models and read the texts of the indexes "
    "without a key; give keys by --api-key-file, or listen at 127.0.0.1"
)
_FIRST_REQUEST = 1.0
"""Seconds in which the first request of a new connection is awaited when the server ends."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        InputError: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(2048)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen at {host} port {port}: {error}; choose another --host or --port"
        ) from error
    return opened


def server_of(app: Any, service: Service) -> Server:
    """Return what serves an application; `run` begins.

    Args:
        app: the application.
        service: the one behind it.
    """
    limits = service.limits
    config = uvicorn.Config(
        app,
        http=protocol_of(limits.header_timeout),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=int(limits.keep_alive),
        timeout_graceful_shutdown=int(limits.drain_timeout),
        h11_max_incomplete_event_size=HEADERS,
    )
    return Server(config, service)


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, and then answers all that was asked.

    It first tells balancers that it ends (`/health` gives 503) while it still answers; then it
    takes no new connections, and ends when the last answer is out. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._ending: asyncio.Task[None] | None = None
        self._before = gc.get_threshold()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT while it serves; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {one: signal.getsignal(one) for one in signals}
        for one in signals:
            loop.add_signal_handler(one, self.end)
        try:
            yield
        finally:
            for one in signals:
                loop.remove_signal_handler(one)
                signal.signal(one, before[one])

    def end(self) -> None:
        """End when all is answered; called again, at once."""
        if self._ending is not None:
            self.force_exit = self.should_exit = True
            self._service.batcher.end()
            return
        self._service.draining = True
        waiting = self._service.batcher.queue.count
        log.info(Facts(event="draining", waiting=waiting))
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        await asyncio.sleep(self._service.limits.drain)
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Begin to take connections, and say so."""
        gc.collect()
        gc.freeze()  # models and libraries stay: looking through them took 40 % of a request
        gc.set_threshold(*_GARBAGE)
        await super().startup(sockets)
        (opened,) = sockets
        host, port = opened.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info(Facts(event="ready", url=url, models=self._service.models.names))
        if Names.at(host).any and not self._service.keys.digests:
            log.warning(Facts(event="open", url=url, message=_OPEN))

    async def shutdown(self, sockets: Any = None) -> None:
        """Take no new connections, serve those that were made by then, and end.

        A connection may wait in the socket's queue, or its request may be on its way: closing
        either would lose a request.
        """
        loop = asyncio.get_running_loop()
        waiting = [line for opened in sockets or () for line in _queued(opened)]
        for server in self.servers:
            server.close()
        protocol: Any = self.config.http_protocol_class
        state = {"server_state": self.server_state, "app_state": self.lifespan.state}
        made = functools.partial(protocol, config=self.config, **state)
        for line in waiting:
            await loop.connect_accepted_socket(made, line)
        due = loop.time() + _FIRST_REQUEST
        while loop.time() < due and any(map(_is_new, self.server_state.connections)):
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would have the application cancelled, and tell of that
            await self.lifespan.shutdown()
        gc.set_threshold(*self._before)


def _is_new(connection: Any) -> bool:
    """Tell whether no request of a connection has come."""
    return connection.cycle is None


def _queued(opened: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections that wait in a listening socket's queue."""
    with contextlib.suppress(OSError):  # BlockingIOError: none is left
        while True:
            line, _ = opened.accept()
            line.setblocking(False)
            yield line
