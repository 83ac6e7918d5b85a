"""Generated texts on disk: what has been paid for once is never asked for again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from embedlm.transform.generator import Chat, Sampling

__all__ = ["Cache", "default_path", "key_of"]

log = logging.getLogger(__name__)
_MOST_NAMES = 500
"""Keys in one query."""


def default_path() -> Path:
    """Return where the cache is: $EMBEDLM_CACHE, or the user's cache folder."""
    own = os.environ.get("EMBEDLM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(base or Path.home() / ".cache") / "embedlm"
    return folder / "generations.sqlite"


def key_of(name: str, chat: Chat, sampling: Sampling, seed: int) -> str:
    """Return the key of one generation: everything that decides it."""
    parts = [name, chat, asdict(sampling), seed]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


class Cache:
    """A table of texts by key, safe for several processes and kills."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError:
            aside = self.path.with_suffix(".damaged")
            os.replace(self.path, aside)
            log.warning("the cache %s was damaged and is kept as %s", self.path, aside.name)
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60)
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
        found: dict[str, str] = {}
        for start in range(0, len(keys), _MOST_NAMES):
            part = keys[start : start + _MOST_NAMES]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, text FROM generations WHERE key IN ({marks})"
            found.update(self._connection.execute(query, part).fetchall())
        return found

    def put(self, entries: Iterable[tuple[str, str]]) -> None:
        """Add texts; they are on disk when this returns."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO generations VALUES (?, ?)", list(entries)
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
