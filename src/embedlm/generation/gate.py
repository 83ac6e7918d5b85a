"""A gate before an endpoint that all threads pass: a rate limit and a circuit breaker."""

from __future__ import annotations

import threading
import time

__all__ = ["Gate"]

_OPENS_AFTER = 8
"""Failures in a row after which one request at a time probes the server."""
_LONGEST = 60.0
"""Seconds between two probes at most."""
_TICK = 0.2
"""Seconds after which a waiting thread looks whether all is to stop."""


class Gate:
    """Lets requests through as fast as a limit allows, and few while the server fails."""

    def __init__(self, per_minute: float | None = None, patience: float = 600.0) -> None:
        self.spacing = 0.0 if per_minute is None else 60.0 / per_minute
        self.patience = patience
        self.answered = 0
        """Requests that the server has answered, be it by a refusal."""
        self.in_a_row = 0
        """Failures since the last answer."""
        self._changed = threading.Condition()
        self._next = 0.0
        self._until = 0.0
        self._probing = False
        self._last = time.monotonic()

    def enter(self, stopped: threading.Event) -> bool:
        """Wait for leave to send a request; return False where all is to stop."""
        with self._changed:
            while not stopped.is_set():
                now = time.monotonic()
                shut = self.in_a_row >= _OPENS_AFTER
                wait = max(self._next - now, self._until - now)
                if wait <= 0 and not (shut and self._probing):
                    self._probing = shut
                    self._next = max(now, self._next) + self.spacing
                    return True
                self._changed.wait(min(max(wait, 0.01), _TICK))
        return False

    def succeeded(self) -> None:
        """Note an answer."""
        with self._changed:
            self.answered += 1
            self.in_a_row, self._until, self._probing = 0, 0.0, False
            self._changed.notify_all()

    refused = succeeded
    """A refusal is an answer, too."""

    def failed(self, pause: float) -> float:
        """Note a failure; return for how long the thread that saw it pauses.

        That is the pause asked for, or what is left of the patience.

        Args:
            pause: seconds.
        """
        with self._changed:
            if self.in_a_row == 0:
                self._last = time.monotonic()  # patience begins with the first failure
            self.in_a_row += 1
            self._probing = False
            pause = min(pause, self._left())
            if self.in_a_row >= _OPENS_AFTER:
                self._until = time.monotonic() + min(pause, _LONGEST)
            self._changed.notify_all()
        return pause

    def exhausted(self) -> bool:
        """Tell whether the server has answered nothing for as long as patience lasts."""
        with self._changed:
            return self.in_a_row > 0 and self._left() == 0

    def _left(self) -> float:
        """Return the seconds of patience that are left since the first failure in a row."""
        return max(0.0, self._last + self.patience - time.monotonic())
