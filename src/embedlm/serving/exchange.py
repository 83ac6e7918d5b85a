"""What the event loop and a forked process say to each other: messages over a pair of sockets.

A message is its length, eight bytes, and its pickle. Both ends are this program's own: the socket
is made before the fork and has no address, so that no one else can write to it.
"""

from __future__ import annotations

import asyncio
import pickle
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.serving.encoding import Output

__all__ = ["EndedError", "Exchange", "Stacked", "receive", "send", "written"]

_LENGTH = struct.Struct("!Q")


class EndedError(Exception):
    """A process has ended, with the work that it had."""


def written(message: object) -> bytes:
    """Return a message as it is sent.

    Raises:
        Exception: it cannot be pickled; of any kind, as objects have their own ways.
    """
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def send(line: socket.socket, message: object) -> None:
    """Send a message, and wait until it is out.

    Raises:
        OSError: nobody is at the other end.
    """
    content = written(message)
    line.sendall(_LENGTH.pack(len(content)))
    line.sendall(content)


def receive(line: socket.socket, idle: float, rest: Callable[[], object]) -> Any:
    """Return the next message.

    Args:
        line: from which it comes.
        idle: seconds after which `rest` is called, once, if none has come.
        rest: is then called.

    Raises:
        EOFError: the other end is closed.
        OSError: likewise.
    """
    waiting = select.poll()
    waiting.register(line, select.POLLIN)
    if not waiting.poll(1000 * idle):
        rest()
    (size,) = _LENGTH.unpack(_read(line, _LENGTH.size))
    return pickle.loads(_read(line, size))  # of our own making


def _read(line: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    left = memoryview(content)
    while left:
        count = line.recv_into(left)
        if not count:
            raise EOFError
        left = left[count:]
    return content


@dataclass(frozen=True, slots=True)
class Stacked:
    """Outputs of like arrays on their way: each head's as one, which takes a tenth of the time."""

    arrays: dict[str, npt.NDArray[Any]]

    @classmethod
    def of(cls, outputs: Sequence[Output]) -> Stacked | Sequence[Output]:
        """Return outputs so, or as they are where they are not alike."""
        kinds = {
            tuple((head, type(one), getattr(one, "dtype", 0), np.shape(one)) for head, one in each)
            for each in map(dict.items, outputs)
        }
        if len(kinds) != 1 or any(kind is not np.ndarray for _, kind, *_ in min(kinds)):
            return outputs
        return cls({head: np.stack([one[head] for one in outputs]) for head in outputs[0]})

    def __iter__(self) -> Iterator[Output]:
        for rows in zip(*self.arrays.values(), strict=True):
            yield dict(zip(self.arrays, rows, strict=True))


@dataclass(slots=True)
class _Question:
    answer: asyncio.Future[Any]
    begins: Callable[[], object]


class Exchange(asyncio.Protocol):
    """The event loop's end: many may ask, and a process answers one after the other."""

    def __init__(self, name: str) -> None:
        """Make one; `over` begins.

        Args:
            name: of the process, for errors.
        """
        self._name = name
        self._transport: Any = None
        self._asked: deque[_Question] = deque()
        self._came = bytearray()
        self.ended = False
        """Whether there is nobody to ask any more."""

    async def over(self, line: socket.socket) -> Exchange:
        """Take a socket, which is closed with it; return this."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=line)
        return self

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport

    async def ask(self, message: bytes, begins: Callable[[], object]) -> Any:
        """Return the answer to a message.

        Args:
            message: as `written` returns it.
            begins: is called when all that was asked before has been answered.

        Raises:
            EndedError: the process has ended.
        """
        if self.ended:
            raise self._end()
        question = _Question(asyncio.get_running_loop().create_future(), begins)
        self._asked.append(question)
        self._transport.writelines((_LENGTH.pack(len(message)), message))
        if len(self._asked) == 1:
            begins()
        return await question.answer

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer, or the end of one and more."""
        self._came += data
        while len(self._came) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._came)
            end = _LENGTH.size + size
            if len(self._came) < end:
                return
            with memoryview(self._came) as came:
                answer = pickle.loads(came[_LENGTH.size : end])  # of our own making
            del self._came[:end]
            question = self._asked.popleft()
            if not question.answer.done():
                question.answer.set_result(answer)
            if self._asked:
                self._asked[0].begins()

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell all who wait that the process has ended."""
        self.ended = True
        for question in self._asked:
            if not question.answer.done():
                question.answer.set_exception(self._end())
        self._asked.clear()

    def _end(self) -> EndedError:
        return EndedError(f"{self._name} has ended")

    def close(self) -> None:
        """Close the line, which the process takes for the end of its work."""
        self.ended = True
        if self._transport is not None:
            self._transport.abort()
