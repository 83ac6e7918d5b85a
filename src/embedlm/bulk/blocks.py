"""Blocks: arrays of encoded records, which a job keeps as files in its folder."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedlm.data import Record
from embedlm.encode.items import Pictured
from embedlm.encode.options import Options
from embedlm.encode.precision import WITH_RANGES, quantize, ranges_for, ranges_of
from embedlm.encode.refused import refused
from embedlm.errors import (
    InputError,
    JobError,
    NotFiniteError,
    RecordError,
    UnsupportedError,
    closest,
)
from embedlm.jobs import Job, Reject
from embedlm.readout.embeddings import as_embeddings
from embedlm.vision.picture import picture_of

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.encode.compiling import Mode

__all__ = [
    "OPTIONS",
    "WITH_RANGES",
    "Block",
    "BlockEncoder",
    "finished_block",
    "lines_of",
    "load_block",
    "save_block",
]

Block = dict[str, npt.NDArray[Any]]
"""The arrays of a block by name: those of each head, `columns` and `rejects`."""

OPTIONS = (
    "role",
    "instruction",
    "demonstrations",
    "heads",
    "dim",
    "precision",
    "normalize",
    "batch_tokens",
    "max_length",
    "adapter",
)
"""The options of `Embedder.encode` that a job takes."""


class BlockEncoder:
    """Encodes blocks of records, one after another, all by the same options.

    Args:
        model: encodes.
        options: as for `Embedder.encode`.
        keep_rejects: put bad records among the block's rejects instead of raising RecordError.

    Raises:
        InputError: an option that cannot be used; raised before anything is read.
    """

    def __init__(self, model: Embedder, options: dict[str, Any], *, keep_rejects: bool) -> None:
        for name in options:
            if name not in OPTIONS:
                raise InputError(
                    f"{name!r} is not an option of encode_file.{closest(name, list(OPTIONS))} "
                    f"Allowed: {', '.join(OPTIONS)}"
                )
        settings = dict(options)
        self.precision = str(settings.pop("precision", None) or "float32")
        call: dict[str, Any] = {name: settings.get(name) for name in ("dim", "normalize")}
        self._call = Options(precision=self.precision, **call)  # refuses an unknown precision
        self._model = model
        self.keep_rejects = keep_rejects
        # Vectors are made smaller here: after the check for NaN, and by ranges all blocks share.
        encode: Any = model.encode
        self.encode = partial(encode, **settings, show_progress=False)
        self.ranges: npt.NDArray[np.float32] | None = None
        self.kernels: Mode = "off"
        no_texts = self.encode([])
        dense, sparse, tokens = _heads(no_texts)
        self._call.check_heads(["dense"] if dense is not None else list(no_texts.heads))
        self.needs_ranges = self.precision in WITH_RANGES
        self.vocabulary = 0 if sparse is None else int(sparse.shape[1])
        self._readout = model.readout_of(settings.get("heads"), settings.get("role"))
        self.width = 0 if tokens is None else self._readout.columns(1)["multi_vector"]
        self.empty = self._block(no_texts, [], "", [])
        """A block without texts; it shows the names, widths and types of the arrays."""

    def __call__(self, records: Sequence[Record], file: str) -> Block:
        """Return the block of these records of a file.

        Raises:
            RecordError: a bad record, unless rejects are kept.
        """
        good = [record for record in records if record.error is None]
        bad = [record for record in records if record.error is not None]
        items, unreadable = self._items(good)
        good, bad = [r for r in good if r.line not in unreadable], [*bad, *unreadable.values()]
        self._refuse(bad, file)
        try:
            outputs = self.encode(items)
        except (InputError, NotFiniteError) as error:
            wrong = refused(self.encode, items)
            if not wrong:
                raise error
            bad += [replace(good[i], error=wrong[i], raw=good[i].text[:200]) for i in sorted(wrong)]
            self._refuse(bad, file)
            good = [record for i, record in enumerate(good) if i not in wrong]
            outputs = self.encode([item for i, item in enumerate(items) if i not in wrong])
        return self._block(outputs, good, file, bad)

    def _items(self, records: Sequence[Record]) -> tuple[list[Any], dict[int, Record]]:
        """Return what is encoded of records, and by line those whose image cannot be read."""
        items: list[Any] = []
        unreadable: dict[int, Record] = {}
        for record in records:
            if record.image is None:
                items.append(record.text)
                continue
            try:
                picture = picture_of(record.image.path, f"line {record.line}")
                if self.keep_rejects:
                    picture.pixels()  # a damaged one is set aside, and does not stop the job
                items.append(Pictured(record.text, picture))
            except InputError as error:
                raw = record.image.path
                unreadable[record.line] = replace(record, error=str(error), raw=raw)
        return items, unreadable

    def take_fitted_ranges(self) -> None:
        """Take the ranges of int8 and uint8 that were fitted for the model.

        Raises:
            InputError: there are none.
        """
        recipe, width = self._readout.recipe, self._readout.dense_width
        self.ranges = ranges_for(self._call, self._model.ranges, recipe, width)

    def widen_ranges(self, texts: Sequence[str]) -> None:
        """Widen the ranges of int8 and uint8 by these texts' vectors."""
        dense, _, _ = _heads(self.encode(texts))
        if dense is None or not len(dense):
            return
        ranges = ranges_of(dense)
        if self.ranges is not None:
            low, high = zip(self.ranges, ranges, strict=True)
            ranges = np.vstack([np.minimum(*low), np.maximum(*high)])
        self.ranges = ranges.astype(np.float32)

    def _refuse(self, bad: Sequence[Record], file: str) -> None:
        if bad and not self.keep_rejects:
            raise RecordError(
                f"{file}:{bad[0].line}: {bad[0].error}. Correct the record, or set bad ones aside "
                "with --rejects FILE (rejects=)"
            )

    def _block(
        self, outputs: Any, good: Sequence[Record], file: str, bad: Sequence[Record]
    ) -> Block:
        block: Block = {}
        dense, sparse, tokens = _heads(outputs)
        if dense is not None:
            block["dense"] = self._smaller(dense)
        if sparse is not None:
            rows = sparse.tocsr()
            block["counts"] = np.diff(rows.indptr).astype(np.int64)
            block["indices"] = rows.indices.astype(np.int32)
            block["data"] = rows.data.astype(np.float32)
        if tokens is not None:
            block["lengths"] = np.array([len(vectors) for vectors in tokens], dtype=np.int64)
            block["tokens"] = np.concatenate([np.zeros((0, self.width), np.float32), *tokens])
        rejects = [
            Reject(file, record.line, str(record.error), record.raw).to_json()
            for record in sorted(bad, key=lambda record: record.line)
        ]
        block["columns"] = _bytes([record.columns for record in good])
        block["rejects"] = _bytes(rejects)
        return block

    def _smaller(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.needs_ranges and self.ranges is None and len(vectors):
            self.take_fitted_ranges()
        ranges = self.ranges if len(vectors) else None
        # A block's arrays are written as they are, without what their integers stand for.
        return np.asarray(quantize(vectors, self.precision, ranges))


FORMS = ("dense", "sparse", "multi_vector")
"""The heads whose outputs have a form in files."""


def _heads(outputs: Any) -> tuple[npt.NDArray[Any] | None, Any, Any]:
    """Return the outputs of each head that has a form in files.

    Raises:
        UnsupportedError: another head's.
    """
    found = as_embeddings(outputs)
    other = next((head for head in found.heads if head not in FORMS), None)
    if other is not None:
        raise UnsupportedError(
            f"the head {other!r} has no form in files; allowed: {', '.join(FORMS)}. Call encode "
            "for its outputs, or name other heads"
        )
    return found.dense, found.sparse, found.multi_vector


def _bytes(lines: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("".join(f"{line}\n" for line in lines).encode("utf-8"), dtype=np.uint8)


def lines_of(array: npt.NDArray[Any]) -> list[str]:
    """Return the lines that a block holds as bytes."""
    return array.tobytes().decode("utf-8").split("\n")[:-1]


# -- blocks in a job's folder -----------------------------------------------------------------


def save_block(job: Job, index: int, block: Block) -> None:
    """Write a finished block; it is on the disk when this returns."""
    buffer = io.BytesIO()
    save: Any = np.savez
    save(buffer, **block)
    job.write_block(index, lambda handle: handle.write(buffer.getbuffer()))


def load_block(job: Job, index: int, names: tuple[str, ...] = ()) -> Block | None:
    """Return a block, or some of its arrays; None: it is missing or damaged, to be done again."""
    try:
        with job.block_path(index).open("rb") as handle, np.load(handle) as file:
            return {name: file[name] for name in names or file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        job.drop_block(index)
        return None


def finished_block(job: Job, index: int, names: tuple[str, ...] = ()) -> Block:
    """Return a block that has been finished, or some of its arrays.

    Raises:
        JobError: it has been damaged since.
    """
    block = load_block(job, index, names)
    if block is None:
        raise JobError(
            f"block {index} in {job.folder} was damaged after it was written; run the same "
            "command again to encode it anew"
        )
    return block
