"""Generated texts on disk: what has been paid for once is never asked for again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from embedlm.errors import GenerationError
from embedlm.generation.generator import Chat, Sampling
from embedlm.jobs import set_aside
from embedlm.jobs.user_cache import expanded, user_cache

__all__ = ["Cache", "default_path", "key_of"]

log = logging.getLogger(__name__)
_MOST_NAMES = 500
"""Keys in one query."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_MAGIC = b"SQLite format 3\0"
_ENDINGS = ("", "-wal", "-shm")
"""Endings of the files that are one database; what was written last may be in the second."""


def default_path() -> Path:
    """Return where the cache is: $EMBEDLM_CACHE (a folder or *.sqlite), or the user's cache."""
    path = os.environ.get("EMBEDLM_CACHE")
    if path and path.endswith(".sqlite"):
        return expanded(path)
    return user_cache() / "generations.sqlite"


def key_of(name: str, chat: Chat, sampling: Sampling, seed: int) -> str:
    """Return the key of one generation: everything that decides it."""
    parts = [name, chat, asdict(sampling), seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Cache:
    """A table of texts by key, safe for several processes, threads and kills.

    Threads that read wait neither for each other nor for one that writes.

    A damaged file is set aside, with a warning, and a new one begun.

    Raises:
        GenerationError: the file cannot be opened, read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        """Connections that no thread reads by at the moment."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._opened()
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):  # locked, read-only, full: no reason to put it aside
                raise
        try:
            return self._open()  # another process may just have begun a new one
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            if self.path.suffix != default_path().suffix and not _was_database(self.path):
                raise GenerationError(
                    f"the file {str(self.path)!r} is no cache of generated texts, and is left as "
                    "it is; name a new file, or one that a run has written"
                ) from error
            aside = set_aside(self.path, _ENDINGS).name
            log.warning("the cache %s is damaged (%s); it is kept as %s", self.path, error, aside)
        return self._open()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60, check_same_thread=False)

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS generations (key TEXT PRIMARY KEY, text TEXT NOT NULL)"
            )
            connection.commit()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the texts that are there."""
        texts: dict[str, str] = {}
        try:
            with self._reader() as reader:
                for start in range(0, len(keys), _MOST_NAMES):
                    part = keys[start : start + _MOST_NAMES]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT key, text FROM generations WHERE key IN ({marks})"
                    found = reader.execute(query, part).fetchall()
                    # Damage may have made another type of a text; it is then written anew.
                    texts.update((key, text) for key, text in found if isinstance(text, str))
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return texts

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that no other thread uses meanwhile."""
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._connect()
        try:
            yield reader
        finally:
            self._readers.append(reader)

    def put(self, entries: Iterable[tuple[str, str]]) -> None:
        """Add texts; they are on disk when this returns."""
        try:
            with self._lock, self._connection:
                self._connection.executemany(
                    "INSERT OR REPLACE INTO generations VALUES (?, ?)", list(entries)
                )
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file."""
        for connection in (*self._readers, self._connection):
            connection.close()

    def _failed(self, error: Exception) -> GenerationError:
        return GenerationError(
            f"the cache of generated texts, {self.path}, cannot be used: {error}. Set "
            "EMBEDLM_CACHE to a folder on a local disk with space, name another file (cache), or "
            "move the file away"
        )


def _was_database(path: Path) -> bool:
    """Tell whether a file begins as a cache does, or is empty; else it is somebody's own."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) in (_MAGIC, b"")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # The low byte is the kind; the rest says more about it.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
