"""Makes and changes an index: reads documents, cuts them, embeds what is new, writes a generation.

What is embedded is kept block by block beside the index, as jobs keep theirs, so that a run that is
killed goes on where it stopped, with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedlm.errors import InputError, closest, require
from embedlm.jobs import Job
from embedlm.jobs.manifest import difference
from embedlm.jobs.names import check_name, real_path
from embedlm.jobs.rejects import check_rejects, write_rejects
from embedlm.search.catalogue import Catalogue
from embedlm.search.chunks import Chunking
from embedlm.search.documents import document_key
from embedlm.search.fitting import fitted, reads_texts
from embedlm.search.layout import (
    CATALOGUE,
    STORES,
    check_model,
    is_index,
    load_model,
    new_facts,
    read_index,
    restored,
)
from embedlm.search.lexical import ANALYZERS
from embedlm.search.store import FirstStage
from embedlm.search.work import Work

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["IndexReport", "build_index", "delete_documents"]


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a run has done."""

    documents: int
    passages: int
    added: int
    """Passages that were embedded, in this run or in one that it went on with."""
    moved: int
    """Passages of new places or metadata, which kept their vectors."""
    deleted: int
    """Passages that were taken out; those that were replaced are not among them."""
    gone: int
    """Documents that stay, though the source does not hold them."""
    set_aside: int
    """Records and files that could not be read, in the rejects file."""
    embedding: float
    """Seconds spent embedding."""
    seconds: float


def build_index(
    source: str | Path,
    index: str | Path,
    model: Embedder | None = None,
    *,
    chunking: Chunking | None = None,
    store: str | None = None,
    first: FirstStage | None = None,
    analyzer: str | None = None,
    sync: bool = False,
    restart: bool = False,
    rejects: str | Path | None = None,
    load_options: Mapping[str, Any] | None = None,
    show_progress: bool | Literal["lines"] | None = None,
    **reading: Any,
) -> IndexReport:
    """Index documents; of an index that is there already, embed only what is new or changed.

    Args:
        source: a file, a folder or a BEIR folder, see `read_documents`.
        index: its folder.
        model: embeds the documents; None takes the index's own, or the built-in model.
        chunking: how documents are cut; None: not at all, or as the index's were.
        store: edge (the default of a new index) or exact.
        first: the first stage of a two-stage search.
        analyzer: of BM25: english (the default of a new index) or plain.
        sync: also take out the documents that the source does not hold.
        restart: forget what an unfinished run has embedded.
        rejects: a file that takes what cannot be read; what the index holds of such a file stays.
            None: the first such record or file is an error.
        load_options: with which the model was loaded (dtype, adapters, generator), so that a
            search loads it so.
        show_progress: see `embedlm.jobs.progress`.
        **reading: of `read_documents`: text_field, id_field, image_field, quoting.

    Raises:
        InputError: something else is at `index`; another model or other settings than the index
            has; a document that has no usable vector.
        UnsupportedError: images are named, and the model reads texts alone.
        JobError: another process is writing the index, or the disk is full.
    """
    start = time.perf_counter()
    out = _checked_place(index)
    _check_names(store, analyzer)
    facts, model = _facts(out, model, chunking, store, first, analyzer, load_options)
    for role in ("query", "document"):
        if reads_texts(model, role):
            model.route(role).renderer.check_room(role)
    if reading.get("image_field") is None:
        reading.pop("image_field", None)  # what an earlier version began goes on
    else:
        model.route("document").executor.image_reader  # noqa: B018  # refuses one of texts alone
    cutting = None if facts["chunking"] is None else Chunking(**facts["chunking"])
    reading["whole"] = cutting is not None
    work = Work(out, facts, model, cutting)
    if rejects is not None:
        check_rejects(Path(rejects))
        work.aside = []
    manifest = {
        "index": {k: v for k, v in facts.items() if k not in ("passages", "documents")},
        "source": str(real_path(source)) if str(source) != "-" else "-",
        "reading": reading,
        "sync": sync,
    }
    with Job.open(out, manifest, restart=restart) as job:
        if facts.get("generation") is None:
            work.learn(source, reading)
        blocks, removed = work.embed(source, reading, sync, job, show_progress)
        report = work.write(job, blocks, removed, show_progress)
        aside = work.aside or []
        if rejects is not None:
            write_rejects(Path(rejects), (f"{one.to_json()}\n".encode() for one in aside))
        job.remove()
    seconds = time.perf_counter() - start
    return IndexReport(**report, set_aside=len(aside), embedding=work.embedding, seconds=seconds)


def delete_documents(index: str | Path, ids: Sequence[str | int]) -> IndexReport:
    """Take documents out of an index.

    Args:
        index: its folder.
        ids: of documents, as they were given.

    Raises:
        InputError: no index, or an id that it does not hold.
        JobError: another process is writing the index, or the disk is full.
    """
    start = time.perf_counter()
    out = Path(index)
    read_index(out)  # before the job makes a folder
    with Job.open(out, {"delete": list(ids)}, restart=True) as job:
        facts = read_index(out)
        documents = [document_key(one) for one in ids]
        catalogue = Catalogue.open(out / facts["generation"] / CATALOGUE, facts["analyzer"])
        held = catalogue.of_documents(documents)
        catalogue.close()
        missing = set(documents) - {entry.document for entry in held}
        if missing:
            raise InputError(
                f"the index {str(out)!r} holds no document with the id {min(missing)}; nothing was "
                "deleted"
            )
        report = Work(out, facts, None, None).write(job, [], [one.key for one in held], False)
        job.remove()
    return IndexReport(**report, set_aside=0, embedding=0.0, seconds=time.perf_counter() - start)


def _checked_place(index: str | Path) -> Path:
    check_name(index, "index")
    out = Path(index)
    if out.exists() and not is_index(out):
        own = out.is_dir() and all(
            path.name.startswith("gen-") or path.name.endswith(".tmp") for path in out.iterdir()
        )
        if not own:
            raise InputError(
                f"{str(out)!r} is there already and is no index; give the index another name"
            )
    if not out.parent.is_dir():
        raise InputError(f"the folder {str(out.parent)!r} is not there; make it first")
    return out


def _check_names(store: str | None, analyzer: str | None) -> None:
    for what, name, allowed in (("store", store, STORES), ("analyzer", analyzer, ANALYZERS)):
        if name is not None and name not in allowed:
            raise InputError(
                f"{what} {name!r} is not known; allowed: {', '.join(allowed)}."
                + closest(name, list(allowed))
            )


def _asked_cutting(chunking: Chunking | None, held: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return how an index that is there is to cut; a size that is not given is the one it has."""
    if chunking is None:
        return None
    asked = asdict(chunking)
    if asked["size"] is None and held is not None:
        asked["size"] = held["size"]
    return asked


def _facts(
    out: Path,
    model: Embedder | None,
    chunking: Chunking | None,
    store: str | None,
    first: FirstStage | None,
    analyzer: str | None,
    load_options: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], Embedder]:
    """Return what the index is, or is to be, and its model."""
    if not is_index(out):
        import embedlm

        made: Embedder = embedlm.load() if model is None else model
        facts = new_facts(
            made,
            load_options,
            store=store or "edge",
            first=first,
            chunking=None if chunking is None else fitted(chunking, made),
            analyzer=analyzer or "english",
        )
        if facts["first"] is not None and "dense" not in facts["heads"]:
            raise InputError("a first stage is for dense vectors, which this recipe does not give")
        # Looked for, not imported: once it is in this process, a writer cannot be forked.
        if facts["store"] == "edge" and find_spec("qdrant_edge") is None:
            require("qdrant_edge", "search")
        return facts, made
    facts = read_index(out)
    asked = {
        "chunking": _asked_cutting(chunking, facts["chunking"]),
        "store": store,
        "first": None if first is None else asdict(first),
        "analyzer": analyzer,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    change = difference({name: facts[name] for name in given}, given)
    if change:
        raise InputError(
            f"the index {str(out)!r} was made with other settings: {change}; leave them out, or "
            "make a new index"
        )
    if model is None:
        return facts, load_model(facts, out)
    model = restored(model, out / facts["generation"])
    check_model(facts, model, out)
    return facts, model
