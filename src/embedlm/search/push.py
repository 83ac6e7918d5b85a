"""Copies an index to a Qdrant server, vectors and all, without embedding anything again."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from embedlm.errors import InputError
from embedlm.jobs import disk_errors, progress
from embedlm.jobs.json_files import read_json, write_json
from embedlm.jobs.lock import locked
from embedlm.jobs.names import real_path
from embedlm.search.catalogue import Catalogue
from embedlm.search.layout import CATALOGUE, open_store, read_index, store_options
from embedlm.search.server import QdrantStore
from embedlm.search.store import StoredPoint

__all__ = ["push_index"]

_AT_ONCE = 256


def push_index(
    index: str | Path,
    place: str,
    collection: str | None = None,
    *,
    api_key: str | None = None,
    show_progress: bool | Literal["lines"] | None = None,
) -> dict[str, Any]:
    """Copy an index to a server; a copy that was stopped goes on where it was.

    Documents that the collection holds and the index does not are taken out of it.

    Args:
        index: its folder.
        place: the server's URL, see `QdrantStore`.
        collection: its name there; None: the index's.
        api_key: of the server.
        show_progress: see `embedlm.jobs.progress`.

    Returns:
        place, collection, and how many passages were copied and deleted.

    Raises:
        InputError: no index, a server that does not answer, or a collection of another kind.
        JobError: another process has the index open.
    """
    root = Path(index)
    facts = read_index(root)
    name = collection or real_path(root).name
    target = f"{place}\n{name}\n{facts['generation']}"
    mark = root / f"push-{hashlib.sha256(target.encode()).hexdigest()[:12]}.json"
    folder = root / facts["generation"]
    with disk_errors(root, "What was copied is kept; run the same command again"):
        lock = locked(root / "push.lock")
    with lock:
        store: Any = open_store(facts, folder)
        catalogue = Catalogue.open(folder / CATALOGUE, facts["analyzer"])
        try:
            server = QdrantStore(place, name, api_key=api_key, **store_options(facts))
            try:
                server.prepare(_heads(store))
                copied = _copy(store, catalogue, server, mark, show_progress)
                deleted = _clean(server, catalogue)
                if len(server) != len(catalogue):
                    raise InputError(
                        f"the collection {name!r} holds {len(server)} passages after the copy of "
                        f"{len(catalogue)}; run the same command again"
                    )
            finally:
                server.close()
        finally:
            catalogue.close()
            store.close()
        mark.unlink(missing_ok=True)
    return {"to": place, "collection": name, "copied": copied, "deleted": deleted}


def _heads(store: Any) -> dict[str, tuple[str, int | None]]:
    heads: dict[str, tuple[str, int | None]] = store.heads()
    return heads


def _copy(store: Any, catalogue: Catalogue, server: QdrantStore, mark: Path, show: Any) -> int:
    done = 0
    if mark.is_file():
        held = read_json(mark, InputError)
        done = int(held["done"]) if isinstance(held, dict) and "done" in held else 0
        done = done if len(server) >= done else 0  # the collection was made anew meanwhile
    copied = 0
    points = islice(store.scroll(), done, None)
    with progress(show, len(catalogue), unit="passage", label="push") as advance:
        advance(done)
        while some := list(islice(points, _AT_ONCE)):
            server.put(_with_texts(some, catalogue))
            copied += len(some)
            write_json(mark, {"done": done + copied})
            advance(len(some))
    return copied


def _with_texts(points: list[StoredPoint], catalogue: Catalogue) -> list[StoredPoint]:
    entries = catalogue.entries([point.key for point in points])
    found = []
    for point in points:
        entry = entries[point.key]
        extra = {
            "document": entry.id,
            "chunk": entry.chunk,
            "text": entry.text,
            "metadata": dict(entry.metadata),
            "file": entry.file,
            "line": entry.line,
        }
        if entry.image is not None:
            extra["image"] = entry.image
        found.append(StoredPoint(point.key, point.vectors, {**extra, **point.payload}))
    return found


def _clean(server: QdrantStore, catalogue: Catalogue) -> int:
    """Take out what the index no longer holds."""
    if len(server) == len(catalogue):
        return 0
    keys = catalogue.digests()
    gone = [point.key for point in server.scroll() if point.key not in keys]
    server.delete(gone)
    return len(gone)
