"""The server's log: a JSON object a line on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from functools import lru_cache
from typing import Any, TextIO

__all__ = ["Facts", "log_lines", "tell"]

TOGETHER = 0.1
"""Seconds of requests whose lines are written together: a write for each took a fifth of the
event loop's time."""


MOST = 10_000
"""Lines that may wait to be written."""
PATIENCE = 1.0
"""Seconds for which the end of the program waits for who reads the log."""


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
    """Has a thread write the lines, in order; those of requests together, a little later.

    Whoever reads the log may be slow, or stopped, and a request waits for neither: where `MOST`
    lines wait, further ones are dropped, and their number is told.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._waiting, self._urgent = threading.Event(), threading.Event()
        self._writing = threading.Lock()
        self._owner = os.getpid()
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        try:
            line = self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return
        if os.getpid() != self._owner:  # a forked process has no thread that writes
            self._write(line)
            return
        if len(self._lines) >= MOST:
            self._dropped += 1
            return
        self._lines.append(line)
        facts = record.msg
        if not (isinstance(facts, Facts) and facts.get("event") == "request"):
            self._urgent.set()
        self._waiting.set()
        if self._writer is None:  # processes that are forked before have one thread less
            self._writer = threading.Thread(target=self._write_on, name="embedlm-log", daemon=True)
            self._writer.start()

    def flush(self) -> None:
        """Wait until all is written, or nobody has read it for `PATIENCE` seconds."""
        if os.getpid() != self._owner or self._writer is None:
            return
        self._urgent.set()
        self._waiting.set()
        end = time.monotonic() + PATIENCE
        while (self._lines or self._writing.locked()) and time.monotonic() < end:
            time.sleep(0.002)

    def close(self) -> None:
        """Write what has not been written; nothing is taken after it."""
        self.flush()
        super().close()

    def _write_on(self) -> None:
        while True:
            self._waiting.wait()
            self._urgent.wait(TOGETHER)
            self._waiting.clear()
            self._urgent.clear()
            with self._writing:
                lines = [self._lines.popleft() for _ in range(len(self._lines))]
                if self._dropped:
                    lines.append(json.dumps({"event": "dropped", "lines": self._dropped}) + "\n")
                    self._dropped = 0
                self._write("".join(lines))

    def _write(self, text: str) -> None:
        try:
            try:
                number = self._stream.fileno()
            except OSError:  # a stream that is no file
                self._stream.write(text)
                return
            # Not through the stream, whose lock the end of the interpreter would wait for.
            content = text.encode("utf-8", "backslashreplace")
            while content:
                content = content[os.write(number, content) :]
        except (OSError, ValueError):  # nobody reads the log any more: requests are still answered
            pass


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
