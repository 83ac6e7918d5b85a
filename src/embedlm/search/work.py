"""One run on an index: cuts documents, embeds what is new block by block, has it written.

Each block is kept beside the index when it is finished, so that a run that is killed goes on.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedlm.encode.items import Pictured
from embedlm.encode.refused import refused
from embedlm.errors import (
    EmbedLMError,
    InputError,
    JobError,
    NotFiniteError,
    UnsupportedError,
)
from embedlm.jobs import Job, Reject, disk_errors, progress
from embedlm.readout.embeddings import as_embeddings
from embedlm.search.catalogue import Entry
from embedlm.search.chunks import Chunking, Span
from embedlm.search.documents import Document, read_documents
from embedlm.search.edge import check_space
from embedlm.search.fitting import reads_pictures, reads_whole
from embedlm.search.forms import pack_heads
from embedlm.search.known import Known, digest_of
from embedlm.search.late import late_model, late_vectors
from embedlm.search.layout import CATALOGUE, model_facts, write_statistics
from embedlm.search.writer import KEPT, Order, read_block, write_generation
from embedlm.vision import picture_of, settings_digest

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Work"]

BLOCK = 256
"""Passages that are embedded and kept together, about."""
_OF_IMAGE = 16
"""Passages that take about as long as an image."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document's passages; those of one document lie in one block."""

    document: Document
    spans: Sequence[Span] | None
    """Its chunks; None: the document is one passage."""
    entries: list[Entry]
    starts: list[int]
    """Where each passage begins in the document."""
    sources: list[str | None] = field(default_factory=list)
    """Of each passage: the one of the index that has its vectors; None: it is to be embedded."""

    def fresh(self) -> _Cut:
        """Return the passages that are to be embedded."""
        rows = [i for i, source in enumerate(self.sources) if source is None]
        return self.chosen(rows, [None] * len(rows))

    def chosen(self, rows: Sequence[int], sources: list[str | None]) -> _Cut:
        """Return some of the passages, with their sources."""
        entries, starts = [self.entries[i] for i in rows], [self.starts[i] for i in rows]
        return _Cut(self.document, self.spans, entries, starts, sources)


class Work:
    """One run on an index."""

    def __init__(
        self, out: Path, facts: dict[str, Any], model: Embedder | None, chunking: Chunking | None
    ) -> None:
        self.out, self.facts, self.model, self.chunking = out, facts, model, chunking
        self._late: Embedder | None = None
        if model is not None and chunking is not None and chunking.late:
            self._late = late_model(model)
        # With a max_length of the index's own, texts are shortened, not cut.
        asked = bool(facts["model"]["options"].get("max_length"))
        fits = model is not None and chunking is None and not asked
        self._how: dict[str, Any] = {
            "fits": reads_whole(model) if model is not None and fits else None,
            "images": model is not None and reads_pictures(model),
        }
        if model is not None and self._how["images"]:
            facts["images"] = settings_digest(model.route("document").backbone)
        self.embedding = 0.0
        self.added = self.moved = self.gone = 0
        self.aside: list[Reject] | None = None
        """Takes what cannot be read; None: it is an error."""
        self._base = facts.get("generation")
        self._similarity = facts["similarity"]

    def learn(self, source: str | Path, reading: Mapping[str, Any]) -> None:
        """Fit a model whose recipe reads what is learnt from a corpus, unless that was done before.

        The caller's model stays as it is, so that its next index is fitted to its own documents.
        """
        model = self.model
        assert model is not None
        if model.readout.unfitted:
            if str(source) == "-":
                raise InputError("this recipe reads the documents twice; give a file, not stdin")
            bad = None if self.aside is None else lambda _: None
            documents = list(read_documents(source, **self._how, bad=bad, **reading))
            seen = next((one.image.name for one in documents if one.image is not None), None)
            if seen is not None:
                raise UnsupportedError(
                    f"this recipe learns from texts before it embeds them, and {seen!r} is an "
                    "image; leave images out, or take another recipe"
                )
            copy = model.with_recipe(model.recipe)
            self.model = copy.fit([document.text for document in documents])
            self.facts["model"]["identity"] = model_facts(self.model)["identity"]

    # -- embedding ----------------------------------------------------------------------------

    def embed(
        self, source: Any, reading: Mapping[str, Any], sync: bool, job: Job, show: Any
    ) -> tuple[list[Path], list[str]]:
        """Embed what is new; return the blocks' files and the keys that are taken out."""
        file = None if self._base is None else self.out / self._base / CATALOGUE
        known = Known(file, self.facts["analyzer"])
        seen: set[str] = set()
        removed: list[str] = []
        blocks: list[Path] = []

        def fresh() -> Iterator[_Cut]:
            bad = None if self.aside is None else self.aside.append
            documents = read_documents(source, **self._how, bad=bad, **reading)
            for cut in map(self._cut, documents):
                keys = {entry.key for entry in cut.entries}
                changed = self._changed(cut, known)
                seen.add(cut.document.key)
                if changed is not None and not self._readable(changed):
                    continue
                removed.extend(k for k in known.parts.get(cut.document.key, ()) if k not in keys)
                if changed is not None:
                    yield changed

        with progress(show, None, unit="passage", label="embed") as advance:
            for number, cuts in enumerate(_blocks(fresh())):
                blocks.append(self._block(job, number, cuts))
                sources = [source for cut in cuts for source in cut.sources]
                self.added += sources.count(None)
                self.moved += len(sources) - sources.count(None)
                advance(len(sources))
        seen |= known.of_files({reject.file for reject in self.aside or ()})
        known.close()
        gone = [name for name in known.parts if name not in seen]
        if sync:
            removed += [key for name in gone for key in known.parts[name]]
        else:
            self.gone = len(gone)
        return blocks, removed

    def _changed(self, cut: _Cut, known: Known) -> _Cut | None:
        """Return the passages of a document that the index does not hold as they are."""
        rows = [i for i, entry in enumerate(cut.entries) if not known.has(entry)]
        if not rows:
            return None
        whole = cut.document.text if self._late is not None else ""
        if whole:  # all chunks are embedded together
            rows = list(range(len(cut.entries)))
        sources = [known.source(cut.entries[i], whole, cut.starts[i]) for i in rows]
        if whole and None in sources:
            sources = [None] * len(rows)
        return cut.chosen(rows, sources)

    def _readable(self, cut: _Cut) -> bool:
        """Tell whether the image of a document can be embedded; one that cannot is set aside.

        Raises:
            InputError: it cannot be read, and nothing is set aside.
        """
        image, own = cut.document.image, cut.document
        if image is None or None not in cut.sources:
            return True
        assert self.model is not None
        model = self.model.route("document")
        try:
            picture = picture_of(image.path, f"{own.file}:{own.line}")
            if self.aside is not None:
                model.executor.image_reader.read(picture, model.recipe.image)
        except InputError as error:
            if self.aside is None:
                raise
            self.aside.append(Reject(own.file, own.line, str(error), image.name))
            return False
        return True

    def _cut(self, document: Document) -> _Cut:
        spans, image = None, document.image
        if image is not None and self._late is not None:
            raise UnsupportedError(
                f"late chunking (--late) pools a text's own states, and {image.name!r} is an "
                "image; leave it out"
            )
        if self.chunking is not None and image is None:  # a text beside an image is not cut
            assert self.model is not None
            spans = self.chunking.spans(document.text, self.model.tokenizer)
        whole = document.text if self._late is not None else ""
        entries, places = [], spans or [(0, len(document.text))]
        shown = None if image is None else (image.name, image.digest)
        for number, (start, end) in enumerate(places):
            text, metadata = document.text[start:end], dict(document.metadata)
            line = document.line + document.text.count("\n", 0, start) * (spans is not None)
            digest = digest_of(text, metadata, document.file, line, whole, start, shown)
            key = document.key if spans is None else f"{document.key}#{number:06d}"
            place = (number, document.file, line)
            own = (key, document.key, *place, text, metadata, digest)
            entries.append(Entry(*own, *(shown or ())))
        return _Cut(document, spans, entries, [start for start, _ in places])

    def _block(self, job: Job, number: int, cuts: Sequence[_Cut]) -> Path:
        """Return the file of a block, which is written unless an earlier run has done so."""
        entries = [entry for cut in cuts for entry in cut.entries]
        sources = [source for cut in cuts for source in cut.sources]
        told = zip(entries, sources, strict=True)
        facts = "".join(f"{entry.key}\0{entry.digest}\0{source}\n" for entry, source in told)
        digest = hashlib.sha256(facts.encode("utf-8")).hexdigest()[:32]
        path = job.block_path(number)
        if path.is_file():
            try:
                if read_block(path).digest == digest:
                    return path
            except JobError:
                pass
            job.drop_block(number)
        start = time.perf_counter()
        fresh = [cut for cut in map(_Cut.fresh, cuts) if cut.entries]
        vectors = self._vectors(fresh, [e for cut in fresh for e in cut.entries]) if fresh else {}
        self.embedding += time.perf_counter() - start
        kept = [asdict(entry) for entry in entries]
        header = {"digest": digest, "entries": kept, "sources": sources}
        arrays: dict[str, Any] = pack_heads(vectors, header)
        size = sum(array.nbytes for array in arrays.values()) // 2
        check_space(job.folder, size, self.facts["store"])
        job.write_block(number, lambda file: np.savez(file, **arrays))
        return path

    def _vectors(self, cuts: Sequence[_Cut], entries: Sequence[Entry]) -> dict[str, Any]:
        """Return the vectors of passages by head."""
        assert self.model is not None
        heads = list(self.facts["heads"])
        late = self._late
        plain = [head for head in heads if late is None or head != "dense"]
        vectors: dict[str, Any] = {}
        if plain:
            items = [_item(cut.document, entry) for cut in cuts for entry in cut.entries]
            encode = partial(self.model.encode_document, heads=plain, show_progress=False)
            try:
                embeddings = as_embeddings(encode(items))
            except (InputError, NotFiniteError) as error:
                raise _blamed(error, entries, refused(encode, items)) from error
            vectors = {head: embeddings[head] for head in plain}
        if late is not None and "dense" in heads:
            parts = [late_vectors(late, c.document.text, c.spans or []) for c in cuts]
            vectors["dense"] = np.concatenate(parts)
        if "dense" in vectors and self._similarity == "cosine":
            zero = np.flatnonzero(~np.asarray(vectors["dense"]).any(axis=1))
            if len(zero):
                entry = entries[zero[0]]
                shown = entry.text[:60] or entry.image
                raise UnsupportedError(
                    f"{entry.file}:{entry.line}: the model gives {shown!r} a vector of zeros, "
                    "which cannot be compared by cosine; leave it out, or take another recipe"
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
        with disk_errors(self.out, KEPT):
            self.out.mkdir(exist_ok=True)
            if self._base is None and self.model is not None:
                learnt = job.folder / "fixed" / "learnt"
                shutil.rmtree(learnt, ignore_errors=True)
                learnt.mkdir(parents=True)
                write_statistics(self.model, learnt)
        name = f"gen-{last + 1:06d}"
        order = Order(self.out, name, self._base, self.facts, blocks, removed, learnt)
        with progress(show, self.added + self.moved, unit="passage", label="write") as advance:
            facts = write_generation(order, advance)
        for path in self.out.glob("gen-*"):
            if path.name != name:
                shutil.rmtree(path, ignore_errors=True)
        return self._report(facts, len(removed))

    def _report(self, facts: Mapping[str, Any], deleted: int) -> dict[str, int]:
        counts = {"documents": facts["documents"], "passages": facts["passages"]}
        done = {"added": self.added, "moved": self.moved, "deleted": deleted}
        return {**counts, **done, "gone": self.gone}


def _blamed(
    error: EmbedLMError, entries: Sequence[Entry], wrong: Mapping[int, str]
) -> EmbedLMError:
    """Return an error that says where the first passage stands that a model refuses."""
    if not wrong:
        return error
    entry = entries[min(wrong)]
    return InputError(f"{entry.file}:{entry.line}: {wrong[min(wrong)]}. Change it, or leave it out")


def _item(document: Document, entry: Entry) -> Any:
    """Return what is embedded of a passage."""
    if document.image is None:
        return entry.text
    place = f"{document.file}:{document.line}"
    return Pictured(entry.text, picture_of(document.image.path, place))


def _blocks(cuts: Iterator[_Cut]) -> Iterator[list[_Cut]]:
    """Yield documents in blocks of about as many passages."""
    held: list[_Cut] = []
    count = 0
    for cut in cuts:
        held.append(cut)
        count += len(cut.entries) if cut.document.image is None else _OF_IMAGE
        if count >= BLOCK:
            yield held
            held, count = [], 0
    if held:
        yield held
