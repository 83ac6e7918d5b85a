"""The time of one request, by one timer: most requests are answered before it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["SOON", "Patience"]

SOON = 0.2
"""Seconds after which a request counts as a long one."""


class Patience:
    """Tells those who ask once a request has become a long one."""

    __slots__ = ("_calls", "_handle", "_long")

    def __init__(self, soon: float = SOON) -> None:
        """Begin.

        Args:
            soon: seconds after which it is a long one.
        """
        self._calls: list[Callable[[], object]] = []
        self._long = False
        self._handle = asyncio.get_running_loop().call_later(soon, self._tell)

    def when_long(self, call: Callable[[], object]) -> None:
        """Have a call made when the request has become a long one: at once, where it is."""
        if self._long:
            call()
        else:
            self._calls.append(call)

    def _tell(self) -> None:
        self._long = True
        for call in self._calls:
            call()
        self._calls.clear()

    def end(self) -> None:
        """Tell no one any more."""
        self._handle.cancel()
        self._calls.clear()
