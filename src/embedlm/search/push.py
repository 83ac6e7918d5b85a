"""Copies an index to a Qdrant server, vectors and all, without embedding anything again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
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
from embedlm.search.pushed import OWNER, STATE, check_owner, owner_of, state_of
from embedlm.search.server import QdrantStore
from embedlm.search.store import StoredPoint
from embedlm.search.whole import check_passages

__all__ = ["push_index"]

_AT_ONCE = 256


def push_index(
    index: str | Path,
    place: str,
    collection: str | None = None,
    *,
    api_key: str | None = None,
    replace: bool = False,
    show_progress: bool | Literal["lines"] | None = None,
) -> dict[str, Any]:
    """Copy an index to a server; a copy that was stopped goes on where it was.

    Documents that the collection holds of the index, and the index no more, are taken out of it.

    Args:
        index: its folder.
        place: the server's URL, see `QdrantStore`.
        collection: its name there; None: the index's.
        api_key: of the server.
        replace: also take out what another index, or anybody else, has put into the collection.
        show_progress: see `embedlm.jobs.progress`.

    Returns:
        place, collection, and how many passages were copied and deleted.

    Raises:
        InputError: no index, a server that does not answer, a collection of another kind, or one
            that holds something else.
        JobError: another process has the index open.
    """
    root = Path(index)
    facts = read_index(root)
    name = collection or real_path(root).name
    folder = root / facts["generation"]
    with ExitStack() as stack:
        with disk_errors(root, "What was copied is kept; run the same command again"):
            stack.enter_context(locked(root / "push.lock"))
        store: Any = open_store(facts, folder)
        catalogue = Catalogue.open(folder / CATALOGUE, facts["analyzer"])
        try:
            check_passages(store, catalogue, root)
            told = {OWNER: owner_of(facts), STATE: state_of(facts, catalogue)}
            target = f"{place}\n{name}\n{told[STATE]}"
            mark = root / f"push-{hashlib.sha256(target.encode()).hexdigest()[:12]}.json"
            server = QdrantStore(place, name, api_key=api_key, **store_options(facts))
            try:
                if not replace:
                    check_owner(server, facts)
                server.prepare(_heads(store))
                server.find_by(OWNER, STATE)
                copied = _copy(store, catalogue, server, (mark, told), show_progress)
                deleted = server.keep_only(STATE, told[STATE])
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


def _copy(
    store: Any,
    catalogue: Catalogue,
    server: QdrantStore,
    mine: tuple[Path, Mapping[str, str]],
    show: Any,
) -> int:
    """Copy what is not there yet; `mine` is where that is noted, and what each passage tells."""
    (mark, told), done = mine, 0
    if mark.is_file():
        held = read_json(mark, InputError)
        done = int(held["done"]) if isinstance(held, dict) and "done" in held else 0
        if server.count(STATE, told[STATE]) < done:  # the collection was changed meanwhile
            done = 0
    copied = 0
    points = islice(store.scroll(), done, None)
    with progress(show, len(catalogue), unit="passage", label="push") as advance:
        advance(done)
        while some := list(islice(points, _AT_ONCE)):
            server.put(_with_texts(some, catalogue, told))
            copied += len(some)
            write_json(mark, {"done": done + copied})
            advance(len(some))
    return copied


def _with_texts(
    points: list[StoredPoint], catalogue: Catalogue, told: Mapping[str, str]
) -> list[StoredPoint]:
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
            **told,
        }
        if entry.image is not None:
            extra["image"] = entry.image
        found.append(StoredPoint(point.key, point.vectors, {**extra, **point.payload}))
    return found
