"""What an index knows of its passages besides vectors: ids, texts, metadata, counts of terms.

One SQLite file. It is written by one process while no one reads it, and then only read.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from embedlm.errors import InputError
from embedlm.search.lexical import counts

__all__ = ["Catalogue", "Entry"]

_SCHEMA = """
CREATE TABLE passages (key TEXT PRIMARY KEY, document TEXT NOT NULL, chunk INTEGER NOT NULL,
  file TEXT NOT NULL, line INTEGER NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL,
  digest TEXT NOT NULL, length INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX documents ON passages (document);
CREATE TABLE terms (term INTEGER PRIMARY KEY, df INTEGER NOT NULL);
"""
_IMAGES = "images (key TEXT PRIMARY KEY, path TEXT NOT NULL, content TEXT NOT NULL) WITHOUT ROWID"
_COLUMNS = "key, document, chunk, file, line, text, metadata, digest, path, content"
_PASSAGES = "passages LEFT JOIN images USING (key)"
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """A passage: a document, or a chunk of one."""

    key: str
    """The id in the store."""
    document: str
    """The document's id, as JSON."""
    chunk: int
    file: str
    line: int
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    """Of the text, the metadata and what its vector depends on."""
    image: str | None = None
    """The path of its image, from the folder that was indexed; None: it has none."""
    content: str = ""
    """A hash of that image."""

    @property
    def id(self) -> str | int:
        """The document's id, as it was given."""
        value: str | int = json.loads(self.document)
        return value


class Catalogue:
    """The passages of an index, by key."""

    def __init__(self, connection: sqlite3.Connection, path: Path, analyzer: str) -> None:
        self._db = connection
        self.path = path
        self.analyzer = analyzer
        self._closed = False

    @classmethod
    def create(cls, path: Path, analyzer: str) -> Self:
        """Make an empty one."""
        connection = sqlite3.connect(path)
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)
        connection.execute(f"CREATE TABLE {_IMAGES}")
        return cls(connection, path, analyzer)

    @classmethod
    def open(cls, path: Path, analyzer: str, *, write: bool = False) -> Self:
        """Return the one at a path.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            mode = "rw" if write else "ro&immutable=1"
            connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}", uri=True, check_same_thread=False
            )
            connection.execute("SELECT key, length FROM passages LIMIT 1").fetchone()
            connection.execute("SELECT term, df FROM terms LIMIT 1").fetchone()
            held = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'images'")
            if held.fetchone() is None:  # of an earlier version, which took no images
                connection.execute(f"CREATE {'' if write else 'TEMP '}TABLE {_IMAGES}")
        except sqlite3.Error as error:
            raise InputError(f"{path} is damaged ({error}); make the index again") from error
        return cls(connection, path, analyzer)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise OSError(28, "No space left on device", str(self.path)) from error
            raise InputError(f"{self.path} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.path} is damaged ({error}); make the index again") from error

    # -- reading ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._one("SELECT COUNT(*) FROM passages"))

    def documents(self) -> int:
        """Return the number of documents."""
        return int(self._one("SELECT COUNT(DISTINCT document) FROM passages"))

    def average(self) -> float:
        """Return the terms of a passage on average; images without words are left out."""
        return float(self._one("SELECT AVG(length) FROM passages WHERE text != ''") or 0.0)

    def images(self, *, alone: bool = False) -> int:
        """Return the number of passages that have an image, or that are an image alone."""
        joined = "SELECT COUNT(*) FROM images CROSS JOIN passages USING (key) WHERE text = ''"
        return int(self._one(joined if alone else "SELECT COUNT(*) FROM images"))

    def _one(self, query: str) -> Any:
        with self._told():
            return self._db.execute(query).fetchone()[0]

    def entries(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Return passages by key."""
        return {entry.key: entry for entry in self._chosen("key", keys)}

    def of_documents(self, documents: Sequence[str]) -> list[Entry]:
        """Return the passages of documents, in the order of their chunks."""
        return sorted(self._chosen("document", documents), key=lambda e: (e.document, e.chunk))

    def _chosen(self, column: str, values: Sequence[str]) -> Iterator[Entry]:
        for start in range(0, len(values), _AT_ONCE):
            some = values[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = f"SELECT {_COLUMNS} FROM {_PASSAGES} WHERE {column} IN ({marks})"
            with self._told():
                rows = self._db.execute(query, list(some)).fetchall()
            yield from map(_entry, rows)

    def __iter__(self) -> Iterator[Entry]:
        with self._told():
            yield from map(
                _entry, self._db.execute(f"SELECT {_COLUMNS} FROM {_PASSAGES} ORDER BY key")
            )

    def texts(self) -> Iterator[tuple[str, str, str]]:
        """Yield the key and the text of each passage, and the hash of its image, "" for none."""
        columns = "key, text, COALESCE(content, '')"
        with self._told():
            yield from self._db.execute(f"SELECT {columns} FROM {_PASSAGES} ORDER BY key")

    def digests(self) -> dict[str, str]:
        """Return all digests by key."""
        with self._told():
            return dict(self._db.execute("SELECT key, digest FROM passages"))

    def state(self) -> str:
        """Return a digest of all passages and what their vectors depend on."""
        found = hashlib.sha256()
        with self._told():
            for row in self._db.execute("SELECT key, digest FROM passages ORDER BY key"):
                found.update("\0".join((*row, "")).encode("utf-8", "surrogatepass"))
        return found.hexdigest()[:32]

    def frequency(self, terms: Iterable[int]) -> dict[int, int]:
        """Return in how many passages terms stand."""
        some = list(terms)
        found: dict[int, int] = {}
        for start in range(0, len(some), _AT_ONCE):
            part = some[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(part))
            with self._told():
                found |= dict(
                    self._db.execute(f"SELECT term, df FROM terms WHERE term IN ({marks})", part)
                )
        return found

    # -- writing ------------------------------------------------------------------------------

    def put(self, entries: Sequence[Entry]) -> None:
        """Add passages, or replace those of the same keys."""
        self.remove([entry.key for entry in entries])
        rows, terms, images = [], [], []
        for entry in entries:
            found = counts(entry.text, self.analyzer)
            terms += [(term,) for term in found]
            metadata = json.dumps(entry.metadata, ensure_ascii=False)
            place = (entry.key, entry.document, entry.chunk, entry.file, entry.line)
            rows.append((*place, entry.text, metadata, entry.digest, sum(found.values())))
            if entry.image is not None:
                images.append((entry.key, entry.image, entry.content))
        with self._told():
            self._db.executemany("INSERT INTO images VALUES (?, ?, ?)", images)
            self._db.executemany(f"INSERT INTO passages VALUES ({', '.join('?' * 9)})", rows)
            self._db.executemany(
                "INSERT INTO terms VALUES (?, 1) ON CONFLICT (term) DO UPDATE SET df = df + 1",
                terms,
            )

    def remove(self, keys: Sequence[str]) -> None:
        """Remove passages; keys that are not present are ignored."""
        held = self.entries(keys)
        terms = [(t,) for one in held.values() for t in counts(one.text, self.analyzer)]
        with self._told():
            for table in ("passages", "images"):
                gone = [(key,) for key in held]
                self._db.executemany(f"DELETE FROM {table} WHERE key = ?", gone)
            self._db.executemany("UPDATE terms SET df = df - 1 WHERE term = ?", terms)

    def close(self) -> None:
        """Write what is not yet written and close the file; called again, do nothing."""
        if self._closed:
            return
        self._closed = True
        with self._told():
            try:
                self._db.commit()
            finally:
                self._db.close()


def _entry(row: tuple[Any, ...]) -> Entry:
    key, document, chunk, file, line, text, metadata, digest, image, content = row
    place = (key, document, chunk, file, line)
    return Entry(*place, text, json.loads(metadata), digest, image, content or "")
