"""Writes a generation of an index, in a process of its own.

Qdrant Edge holds Python's lock while it works, and dies where the disk is full; so the process that
embeds or serves never writes. The writer tells its parent how far it is and what went wrong.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import numpy as np

from embedlm.errors import EmbedLMError, JobError
from embedlm.jobs.atomic import disk_errors, replace_folder
from embedlm.jobs.json_files import write_json
from embedlm.search.catalogue import Catalogue, Entry
from embedlm.search.edge import EdgeStore, check_space
from embedlm.search.exact import ExactStore
from embedlm.search.forms import pack_heads, unpack_header, unpack_heads, vector_form
from embedlm.search.layout import CATALOGUE, FACTS, make_store, open_store
from embedlm.search.lexical import Bm25
from embedlm.search.whole import check_files, check_passages, note_files

__all__ = ["KEPT", "Order", "read_block", "write_generation"]

KEPT = "What was embedded is kept; make room and run the same command again"
_AT_ONCE = 256
_starting = threading.Lock()
_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl.h."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written."""

    index: Path
    name: str
    """Of the new generation."""
    base: str | None
    """The generation that it is made from."""
    facts: Mapping[str, Any]
    blocks: Sequence[Path]
    """Files of `bulk` passages with their vectors."""
    removed: Sequence[str] = ()
    """Keys of passages that are taken out."""
    learnt: Path | None = None
    """Folder with the model's statistics."""


@dataclass(frozen=True, slots=True)
class Block:
    """Passages that are added together."""

    entries: list[Entry]
    sources: list[str | None]
    """Of each passage: the one of the base that has its vectors; None: its own are here."""
    vectors: dict[str, Any]
    """By head, of the passages without a source."""
    digest: str


def read_block(file: Path) -> Block:
    """Return a block.

    Raises:
        JobError: the file is damaged.
    """
    with _opened(file) as arrays:
        held = dict(arrays)
        header = unpack_header(held)
        sources = header["sources"]
        return Block(_entries(header), sources, unpack_heads(held), header["digest"])


def _read_entries(file: Path) -> tuple[list[Entry], list[str | None]]:
    """Return a block's passages and their sources without reading vectors."""
    with _opened(file) as arrays:
        header = unpack_header(arrays)
        return _entries(header), header["sources"]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except Exception as error:  # whatever a cut-off or foreign file makes of numpy, zip and JSON
        raise JobError(f"{file} is damaged ({error}); run the same command again") from error


def _entries(header: Mapping[str, Any]) -> list[Entry]:
    return [Entry(**fields) for fields in header["entries"]]


def write_generation(order: Order, advance: Callable[[int], object]) -> dict[str, Any]:
    """Write a generation in a process of its own; return the facts of the index.

    Args:
        order: what is written.
        advance: told the number of passages that have just been written.

    Raises:
        JobError: the disk is full, or the process was ended.
    """
    import torch

    context = _context(alone=torch.cuda.is_initialized() or "qdrant_edge" in sys.modules)
    receiver, sender = context.Pipe(duplex=False)
    forked = context.get_start_method() == "fork"
    process = context.Process(target=_run, args=(order, sender, forked), daemon=True)
    with _without_main():
        process.start()
    sender.close()
    try:
        while True:
            try:
                kind, value = receiver.recv()
            except EOFError:
                process.join()
                raise JobError(_ended(process.exitcode, order)) from None
            if kind == "wrote":
                advance(value)
            elif kind == "done":
                process.join()
                return dict(value)
            else:
                raise value
    finally:
        if process.is_alive():
            process.terminate()
        process.join()
        receiver.close()


def _context(*, alone: bool) -> Any:
    """Return the way in which the writer is started.

    Args:
        alone: this process has threads of CUDA or Edge, which a fork would be left without; the
            writer is then forked from a process that has imported all it needs and done nothing.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    if not alone:
        return get_context("fork")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _without_main() -> Iterator[None]:
    """Start a process without the main module, in which nothing that it runs is defined.

    One that is not forked imports it: of a script that lacks `if __name__ == "__main__"` all lines
    would run once more, there.
    """
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # of no file
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _ended(code: int | None, order: Order) -> str:
    bus = code is not None and -code == getattr(signal, "SIGBUS", 0)
    if bus:
        return f"no space left while writing the index {order.index} (its writer ended). {KEPT}"
    return (
        f"the process that writes the index {order.index} ended (exit status {code}). What was "
        "embedded is kept; run the same command again"
    )


def _end_with_parent() -> None:
    """Have this process killed when its parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _close_others(kept: int) -> None:
    """Close what a fork has of its parent's files: else a killed parent's lock would outlive it."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _run(order: Order, sender: Any, forked: bool) -> None:
    _end_with_parent()
    if forked:
        _close_others(sender.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with disk_errors(order.index, KEPT):
            facts = _write(order, lambda count: sender.send(("wrote", count)))
        sender.send(("done", facts))
    except EmbedLMError as error:
        sender.send(("failed", error))
    except Exception as error:
        told = JobError(f"the index {order.index} cannot be written: {error!r}. {KEPT}")
        sender.send(("failed", told))
    sender.close()


def _write(order: Order, advance: Callable[[int], object]) -> dict[str, Any]:
    unfinished = order.index / f"{order.name}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    size = sum(file.stat().st_size for file in order.blocks)
    check_space(unfinished, size, order.facts["store"])
    catalogue, store = _begin(order, unfinished)
    carried = [unfinished / f"carried-{i}.npz" for i in range(len(order.blocks))]
    for file, aside in zip(order.blocks, carried, strict=True):
        _set_aside(file, catalogue, store, order.facts["heads"], aside)
    catalogue.remove(order.removed)
    store.delete(order.removed)
    for file in order.blocks:
        catalogue.put(_read_entries(file)[0])
    bm25, again = _statistics(order, catalogue)
    for file, aside in zip(order.blocks, carried, strict=True):
        block = read_block(file)
        done = 0
        for part, taken in _with_vectors(block, aside):
            taken["bm25"] = bm25.documents([entry.text for entry in part])
            store.add([one.key for one in part], taken, [one.metadata for one in part])
            done += len(part)
            advance(len(part))
        advance(len(block.entries) - done)
    if again:
        _renew(catalogue, store, bm25)
    facts = {
        **order.facts,
        "id": order.facts.get("id") or uuid4().hex,
        "generation": order.name,
        "average": bm25.average,
        "passages": len(catalogue),
        "documents": catalogue.documents(),
    }
    _finish(order, unfinished, catalogue, store)
    advance(0)  # fails where no one waits for the index any more
    write_json(order.index / FACTS, facts, indent=1)
    return facts


def _set_aside(
    file: Path, catalogue: Catalogue, store: EdgeStore | ExactStore, heads: Sequence[str], to: Path
) -> None:
    """Write the vectors of a block's passages that keep theirs in another point of the store.

    Those of which only the place has changed are not among them: the store does not know it.
    """
    entries, sources = _read_entries(file)
    moved = [i for i, source in enumerate(sources) if source is not None]
    held = catalogue.entries([entries[i].key for i in moved])
    same = (i for i in moved if sources[i] == entries[i].key)
    known = {i for i in same if held[entries[i].key].metadata == entries[i].metadata}
    rows = [i for i in moved if i not in known]
    if rows:
        vectors = store.stored([str(sources[i]) for i in rows], heads)
        arrays: dict[str, Any] = pack_heads(vectors, {"rows": rows})
        np.savez(to, **arrays)


def _with_vectors(block: Block, aside: Path) -> Iterator[tuple[list[Entry], dict[str, Any]]]:
    """Yield passages of a block that the store is to take, some at once, with their vectors."""
    rows = [i for i, source in enumerate(block.sources) if source is None]
    yield from _parts([block.entries[i] for i in rows], block.vectors)
    if aside.is_file():
        with _opened(aside) as arrays:
            held = dict(arrays)
        rows = unpack_header(held)["rows"]
        yield from _parts([block.entries[i] for i in rows], unpack_heads(held))
        aside.unlink()


def _parts(
    entries: list[Entry], vectors: Mapping[str, Any]
) -> Iterator[tuple[list[Entry], dict[str, Any]]]:
    for start in range(0, len(entries), _AT_ONCE):
        part = entries[start : start + _AT_ONCE]
        rows = list(range(start, start + len(part)))
        yield part, {head: vector_form(v).take(v, rows) for head, v in vectors.items()}


def _begin(order: Order, unfinished: Path) -> tuple[Catalogue, EdgeStore | ExactStore]:
    """Return the catalogue and the store of the base, copied, or empty ones."""
    analyzer = order.facts["analyzer"]
    if order.base is None:
        return (
            Catalogue.create(unfinished / CATALOGUE, analyzer),
            make_store(order.facts, unfinished),
        )
    base = order.index / order.base
    check_files(base)
    size = sum(f.stat().st_size for f in base.rglob("*") if f.is_file()) // 2
    check_space(unfinished, size, order.facts["store"])
    shutil.copytree(base, unfinished, dirs_exist_ok=True)
    store = open_store(order.facts, unfinished)  # before the catalogue, a file of it, changes
    catalogue = Catalogue.open(unfinished / CATALOGUE, analyzer, write=True)
    check_passages(store, catalogue, order.index)
    return catalogue, store


def _statistics(order: Order, catalogue: Catalogue) -> tuple[Bm25, bool]:
    """Return the statistics of BM25, and whether old passages need new vectors by them."""
    average, analyzer = catalogue.average(), order.facts["analyzer"]
    kept = order.facts.get("average")
    if order.base is None or kept is None:
        return Bm25(average, analyzer), False
    bm25 = Bm25(kept, analyzer)
    return (Bm25(average, analyzer), True) if bm25.drifted(average) else (bm25, False)


def _renew(catalogue: Catalogue, store: EdgeStore | ExactStore, bm25: Bm25) -> None:
    """Give every passage a new vector of BM25."""
    entries = list(catalogue)
    vectors = bm25.documents([entry.text for entry in entries])
    store.replace("bm25", [entry.key for entry in entries], vectors)


def _finish(
    order: Order, unfinished: Path, catalogue: Catalogue, store: EdgeStore | ExactStore
) -> None:
    check_passages(store, catalogue, order.index)
    catalogue.close()
    if isinstance(store, EdgeStore):
        store.optimize()
        store.close()
        EdgeStore.open(store.path).close()  # the first opening still changes files of Edge
    else:
        store.save(unfinished / "store.npz")
    if order.learnt is not None:
        shutil.copytree(order.learnt, unfinished, dirs_exist_ok=True)
    note_files(unfinished)
    shutil.rmtree(order.index / order.name, ignore_errors=True)
    replace_folder(unfinished, order.index / order.name)
