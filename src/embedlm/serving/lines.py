"""The server's log: a JSON object a line on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from functools import lru_cache
from typing import Any, TextIO

__all__ = ["Facts", "log_lines", "tell"]

TOGETHER = 0.1
"""Seconds of requests whose lines are written together: a write for each took a fifth of the
event loop's time."""


class Facts(dict[str, Any]):
    """What a line of the log says, by name; a message that other handlers see as JSON."""

    def __str__(self) -> str:
        return json.dumps(self)


class _Format(logging.Formatter):
    """One JSON object a line, with the time and the level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        facts: Any = record.msg
        if not isinstance(facts, Facts):
            facts = {"event": "log", "logger": record.name, "message": record.getMessage()}
        stamp = f"{_moment(int(record.created))}.{int(record.msecs):03d}Z"
        return json.dumps({"time": stamp, "level": record.levelname.lower(), **facts})


@lru_cache(maxsize=2)
def _moment(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def tell(log: logging.Logger, level: int, facts: Facts) -> None:
    """Log facts as the logger's method does, but for the place in the code, which takes longer."""
    if log.isEnabledFor(level):
        log.handle(log.makeRecord(log.name, level, "", 0, facts, (), None))


class _Together(logging.Handler):
    """Writes the lines of requests together, a little later, and all others at once, in order."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._waiting = threading.Event()
        self._owner = os.getpid()
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        try:
            line = self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return
        if os.getpid() != self._owner:  # a forked process has no thread that writes later
            self._write(line)
            return
        self._lines.append(line)
        facts = record.msg
        if isinstance(facts, Facts) and facts.get("event") == "request":
            self._write_later()
        else:
            self.flush()

    def _write_later(self) -> None:
        self._waiting.set()
        if self._writer is None:  # processes that are forked before have one thread less
            self._writer = threading.Thread(target=self._write_on, name="embedlm-log", daemon=True)
            self._writer.start()

    def flush(self) -> None:
        """Write what has not been written."""
        self.acquire()
        try:
            if os.getpid() == self._owner and self._lines:
                text = "".join(self._lines)
                self._lines.clear()
                self._write(text)
        finally:
            self.release()

    def close(self) -> None:
        """Write what has not been written; nothing is taken after it."""
        self.flush()
        super().close()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads the log any more: requests are still answered
            pass

    def _write_on(self) -> None:
        while True:
            self._waiting.wait()
            time.sleep(TOGETHER)
            self._waiting.clear()
            self.flush()


def log_lines(level: str = "info") -> None:
    """Write the log to standard error, a JSON object a line; no line holds a text."""
    # No line says them, and finding them out takes a third of the time of a line.
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    handler = _Together(sys.stderr)
    handler.setFormatter(_Format())
    root = logging.getLogger()
    root.handlers = [handler]  # libraries that set handlers up for themselves find this one
    root.setLevel("WARNING")
    logging.getLogger("embedlm.serving").setLevel(level.upper())
    logging.getLogger("mcp").setLevel("CRITICAL")  # its messages may hold what a tool was given
