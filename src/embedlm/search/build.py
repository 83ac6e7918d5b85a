"""Makes and changes an index: reads documents, cuts them, embeds what is new, writes a generation.

What is embedded is kept block by block beside the index, as jobs keep theirs, so that a run that is
killed goes on where it stopped, with the same result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embedlm.errors import InputError, JobError, UnsupportedError, closest, require
from embedlm.jobs import Job, disk_errors, progress
from embedlm.jobs.manifest import difference
from embedlm.jobs.names import check_name
from embedlm.readout.embeddings import as_embeddings
from embedlm.search.catalogue import Catalogue, Entry
from embedlm.search.chunks import Chunking, Span
from embedlm.search.documents import Document, read_documents
from embedlm.search.edge import check_space
from embedlm.search.forms import vector_form
from embedlm.search.late import check_late, late_vectors
from embedlm.search.layout import (
    CATALOGUE,
    STORES,
    as_json,
    check_model,
    is_index,
    load_model,
    new_facts,
    read_index,
    write_statistics,
)
from embedlm.search.lexical import ANALYZERS
from embedlm.search.store import FirstStage
from embedlm.search.writer import Order, read_block, write_generation

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["IndexReport", "build_index", "delete_documents"]

BLOCK = 256
"""Passages that are embedded and kept together, about."""
_KEPT = "What was embedded is kept; make room and run the same command again"


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a run has done."""

    documents: int
    passages: int
    added: int
    """Passages that were embedded, in this run or in one that it went on with."""
    deleted: int
    """Passages that were taken out; those that were replaced are not among them."""
    embedding: float
    """Seconds spent embedding."""
    seconds: float


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document's passages; those of one document lie in one block."""

    document: Document
    spans: Sequence[Span] | None
    """Its chunks; None: the document is one passage."""
    entries: list[Entry]


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
        load_options: with which the model was loaded (dtype, adapters, generator), so that a
            search loads it so.
        show_progress: see `embedlm.jobs.progress`.
        **reading: of `read_documents`: text_field, id_field, quoting.

    Raises:
        InputError: something else is at `index`; another model or other settings than the index
            has; a document that has no usable vector.
        JobError: another process is writing the index, or the disk is full.
    """
    start = time.perf_counter()
    out = _checked_place(index)
    _check_names(store, analyzer)
    facts, model = _facts(out, model, chunking, store, first, analyzer, load_options)
    cutting = None if facts["chunking"] is None else Chunking(**facts["chunking"])
    if cutting is not None and cutting.late:
        check_late(model)
    reading["whole"] = cutting is not None
    work = _Work(out, facts, model, cutting)
    manifest = {
        "index": {k: v for k, v in facts.items() if k not in ("passages", "documents")},
        "source": str(Path(source).resolve()) if str(source) != "-" else "-",
        "reading": reading,
        "sync": sync,
    }
    with Job.open(out, as_json(manifest), restart=restart) as job:
        if facts.get("generation") is None:
            work.learn(source, reading, job)
        blocks, removed = work.embed(source, reading, sync, job, show_progress)
        report = work.write(job, blocks, removed, show_progress)
        job.remove()
    return IndexReport(**report, embedding=work.embedding, seconds=time.perf_counter() - start)


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
    facts = read_index(out)
    with Job.open(out, as_json({"delete": list(ids)}), restart=True) as job:
        facts = read_index(out)
        documents = [json.dumps(one, ensure_ascii=False) for one in ids]
        catalogue = Catalogue.open(out / facts["generation"] / CATALOGUE, facts["analyzer"])
        held = catalogue.of_documents(documents)
        catalogue.close()
        missing = set(documents) - {entry.document for entry in held}
        if missing:
            raise InputError(
                f"the index {str(out)!r} holds no document with the id {min(missing)}; nothing was "
                "deleted"
            )
        report = _Work(out, facts, None, None).write(job, [], [one.key for one in held], False)
        job.remove()
    return IndexReport(**report, embedding=0.0, seconds=time.perf_counter() - start)


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
            chunking=chunking,
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
        "chunking": None if chunking is None else asdict(chunking),
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
    from embedlm.search.layout import restore_statistics

    restore_statistics(model, out / facts["generation"])
    check_model(facts, model, out)
    return facts, model


class _Work:
    """One run on an index."""

    def __init__(
        self, out: Path, facts: dict[str, Any], model: Embedder | None, chunking: Chunking | None
    ) -> None:
        self.out, self.facts, self.model, self.chunking = out, facts, model, chunking
        self.embedding = 0.0
        self.added = 0
        self._base = facts.get("generation")
        self._similarity = facts["similarity"]

    def learn(self, source: str | Path, reading: Mapping[str, Any], job: Job) -> None:
        """Count the tokens of the documents for a recipe that weighs them."""
        model = self.model
        assert model is not None
        if model.recipe.pooling.weights != "none":
            if str(source) == "-":
                raise InputError("this recipe reads the documents twice; give a file, not stdin")
            model.fit([document.text for document in read_documents(source, **reading)])
            self.facts["model"]["identity"] = as_json(
                new_facts(
                    model, None, store="exact", first=None, chunking=None, analyzer="english"
                )["model"]["identity"]
            )

    # -- embedding ----------------------------------------------------------------------------

    def embed(
        self, source: Any, reading: Mapping[str, Any], sync: bool, job: Job, show: Any
    ) -> tuple[list[Path], list[str]]:
        """Embed what is new; return the blocks' files and the keys that are taken out."""
        before: dict[str, str] = {}
        parts: dict[str, list[str]] = {}
        if self._base is not None:
            file = self.out / self._base / CATALOGUE
            catalogue = Catalogue.open(file, self.facts["analyzer"])
            before = catalogue.digests()
            catalogue.close()
            for key in before:
                parts.setdefault(_document_of(key), []).append(key)
        seen: set[str] = set()
        removed: list[str] = []
        blocks: list[Path] = []

        def fresh() -> Iterator[_Cut]:
            for cut in map(self._cut, read_documents(source, **reading)):
                keys = {entry.key for entry in cut.entries}
                removed.extend(k for k in parts.get(cut.document.key, ()) if k not in keys)
                seen.add(cut.document.key)
                changed = [e for e in cut.entries if before.get(e.key) != e.digest]
                if changed:
                    yield cut if cut.spans is not None else _Cut(cut.document, None, changed)

        with progress(show, None, unit="passage", label="embed") as advance:
            for number, cuts in enumerate(_blocks(fresh())):
                blocks.append(self._block(job, number, cuts))
                count = sum(len(cut.entries) for cut in cuts)
                self.added += count
                advance(count)
        if sync:
            removed += [key for name, keys in parts.items() if name not in seen for key in keys]
        return blocks, removed

    def _cut(self, document: Document) -> _Cut:
        spans = None
        if self.chunking is not None:
            assert self.model is not None
            spans = self.chunking.spans(document.text, self.model.tokenizer)
        whole = document.text if self.chunking is not None and self.chunking.late else ""
        entries = []
        for number, (start, end) in enumerate(spans or [(0, len(document.text))]):
            text = document.text[start:end]
            line = document.line + document.text.count("\n", 0, start) * (spans is not None)
            facts = [text, dict(document.metadata), document.file, line, whole, start]
            digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
            key = document.key if spans is None else f"{document.key}#{number:06d}"
            entries.append(
                Entry(
                    key,
                    document.key,
                    number,
                    document.file,
                    line,
                    text,
                    dict(document.metadata),
                    digest,
                )
            )
        return _Cut(document, spans, entries)

    def _block(self, job: Job, number: int, cuts: Sequence[_Cut]) -> Path:
        """Return the file of a block, which is written unless an earlier run has done so."""
        entries = [entry for cut in cuts for entry in cut.entries]
        facts = "".join(f"{entry.key}\0{entry.digest}\n" for entry in entries)
        digest = hashlib.sha256(facts.encode("utf-8")).hexdigest()[:32]
        path = job.block_path(number)
        if path.is_file():
            try:
                if read_block(path)[2] == digest:
                    return path
            except JobError:
                pass
            job.drop_block(number)
        start = time.perf_counter()
        vectors = self._vectors(cuts, entries)
        self.embedding += time.perf_counter() - start
        forms = {head: vector_form(value) for head, value in vectors.items()}
        header = {
            "digest": digest,
            "entries": [asdict(entry) for entry in entries],
            "forms": {head: form.name for head, form in forms.items()},
        }
        arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        for head, form in forms.items():
            packed = form.pack(vectors[head])
            arrays |= {f"{head}.{name}": array for name, array in packed.items()}
        check_space(job.folder, sum(array.nbytes for array in arrays.values()) // 2)
        job.write_block(number, lambda file: np.savez(file, **arrays))
        return path

    def _vectors(self, cuts: Sequence[_Cut], entries: Sequence[Entry]) -> dict[str, Any]:
        """Return the vectors of passages by head."""
        assert self.model is not None
        heads = list(self.facts["heads"])
        late = self.chunking is not None and self.chunking.late
        plain = [head for head in heads if not (late and head == "dense")]
        vectors: dict[str, Any] = {}
        if plain:
            texts = [entry.text for entry in entries]
            found = self.model.encode_document(texts, heads=plain, show_progress=False)
            embeddings = as_embeddings(found)
            vectors = {head: embeddings[head] for head in plain}
        if late and "dense" in heads:
            parts = [late_vectors(self.model, c.document.text, c.spans or []) for c in cuts]
            vectors["dense"] = np.concatenate(parts)
        if "dense" in vectors and self._similarity == "cosine":
            zero = np.flatnonzero(~np.asarray(vectors["dense"]).any(axis=1))
            if len(zero):
                entry = entries[zero[0]]
                raise UnsupportedError(
                    f"{entry.file}:{entry.line}: the model gives {entry.text[:60]!r} a vector of "
                    "zeros, which cannot be compared by cosine; leave the text out, or take "
                    "another recipe"
                )
        return vectors

    # -- writing ------------------------------------------------------------------------------

    def write(
        self, job: Job, blocks: Sequence[Path], removed: Sequence[str], show: Any
    ) -> dict[str, int]:
        """Write a new generation, where anything has changed, and drop the old ones."""
        if self._base is not None and not blocks and not removed:
            return self._report(self.facts, 0)
        last = int(self._base.removeprefix("gen-")) if self._base else 0
        learnt = None
        with disk_errors(self.out, _KEPT):
            self.out.mkdir(exist_ok=True)
            if self._base is None and self.model is not None:
                learnt = job.folder / "fixed" / "learnt"
                shutil.rmtree(learnt, ignore_errors=True)
                learnt.mkdir(parents=True)
                write_statistics(self.model, learnt)
        name = f"gen-{last + 1:06d}"
        order = Order(self.out, name, self._base, self.facts, blocks, removed, learnt)
        count = sum(len(read_block(block)[0]) for block in blocks)
        with progress(show, count, unit="passage", label="write") as advance:
            facts = write_generation(order, advance)
        for path in self.out.glob("gen-*"):
            if path.name != name:
                shutil.rmtree(path, ignore_errors=True)
        return self._report(facts, len(removed))

    def _report(self, facts: Mapping[str, Any], deleted: int) -> dict[str, int]:
        counts = {"documents": facts["documents"], "passages": facts["passages"]}
        return {**counts, "added": self.added, "deleted": deleted}


def _document_of(key: str) -> str:
    """Return the document of a passage's key."""
    head, sign, number = key.rpartition("#")
    return head if sign and number.isdigit() and not key.endswith('"') else key


def _blocks(cuts: Iterator[_Cut]) -> Iterator[list[_Cut]]:
    """Yield documents in blocks of about as many passages."""
    held: list[_Cut] = []
    count = 0
    for cut in cuts:
        held.append(cut)
        count += len(cut.entries)
        if count >= BLOCK:
            yield held
            held, count = [], 0
    if held:
        yield held
