"""One run on an index: cuts documents, embeds what is new block by block, has it written.

Each block is kept beside the index when it is finished, so that a run that is killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedlm.errors import InputError, JobError, UnsupportedError
from embedlm.jobs import Job, disk_errors, progress
from embedlm.readout.embeddings import as_embeddings
from embedlm.search.catalogue import Catalogue, Entry
from embedlm.search.chunks import Chunking, Span
from embedlm.search.documents import Document, read_documents
from embedlm.search.edge import check_space
from embedlm.search.fitting import reads_whole
from embedlm.search.forms import pack_heads
from embedlm.search.late import late_model, late_vectors
from embedlm.search.layout import CATALOGUE, model_facts, write_statistics
from embedlm.search.writer import KEPT, Order, read_block, write_generation

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Work"]

BLOCK = 256
"""Passages that are embedded and kept together, about."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A document's passages; those of one document lie in one block."""

    document: Document
    spans: Sequence[Span] | None
    """Its chunks; None: the document is one passage."""
    entries: list[Entry]


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
        self._fits = None
        if model is not None and chunking is None and not asked:
            self._fits = reads_whole(model)
        self.embedding = 0.0
        self.added = self.gone = 0
        self._base = facts.get("generation")
        self._similarity = facts["similarity"]

    def learn(self, source: str | Path, reading: Mapping[str, Any]) -> None:
        """Count the tokens of the documents for a recipe that weighs them."""
        model = self.model
        assert model is not None
        if model.recipe.pooling.weights != "none":
            if str(source) == "-":
                raise InputError("this recipe reads the documents twice; give a file, not stdin")
            documents = read_documents(source, fits=self._fits, **reading)
            model.fit([document.text for document in documents])
            self.facts["model"]["identity"] = model_facts(model)["identity"]

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
            for cut in map(self._cut, read_documents(source, fits=self._fits, **reading)):
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
        gone = [name for name in parts if name not in seen]
        if sync:
            removed += [key for name in gone for key in parts[name]]
        else:
            self.gone = len(gone)
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
        header = {"digest": digest, "entries": [asdict(entry) for entry in entries]}
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
            texts = [entry.text for entry in entries]
            found = self.model.encode_document(texts, heads=plain, show_progress=False)
            embeddings = as_embeddings(found)
            vectors = {head: embeddings[head] for head in plain}
        if late is not None and "dense" in heads:
            parts = [late_vectors(late, c.document.text, c.spans or []) for c in cuts]
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
        with disk_errors(self.out, KEPT):
            self.out.mkdir(exist_ok=True)
            if self._base is None and self.model is not None:
                learnt = job.folder / "fixed" / "learnt"
                shutil.rmtree(learnt, ignore_errors=True)
                learnt.mkdir(parents=True)
                write_statistics(self.model, learnt)
        name = f"gen-{last + 1:06d}"
        order = Order(self.out, name, self._base, self.facts, blocks, removed, learnt)
        with progress(show, self.added, unit="passage", label="write") as advance:
            facts = write_generation(order, advance)
        for path in self.out.glob("gen-*"):
            if path.name != name:
                shutil.rmtree(path, ignore_errors=True)
        return self._report(facts, len(removed))

    def _report(self, facts: Mapping[str, Any], deleted: int) -> dict[str, int]:
        counts = {"documents": facts["documents"], "passages": facts["passages"]}
        return {**counts, "added": self.added, "deleted": deleted, "gone": self.gone}


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
