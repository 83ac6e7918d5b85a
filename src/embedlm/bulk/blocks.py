"""Turns a block of records into the arrays that are written for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedlm.data.source import Record
from embedlm.encode.inputs import Options
from embedlm.encode.precision import quantize, ranges_of
from embedlm.errors import InputError, RecordError, closest
from embedlm.jobs.job import Block

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.encode.compiling import Mode

__all__ = ["OPTIONS", "Worker"]

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
"""What `Embedder.encode` takes that a job takes too."""
_WITH_RANGES = ("int8", "uint8")


class Worker:
    """Encodes blocks of records, one after another, all by the same options.

    Raises:
        InputError: an option that cannot be used; told before anything is read.
    """

    def __init__(self, model: Embedder, options: dict[str, Any], *, set_aside: bool) -> None:
        for name in options:
            if name not in OPTIONS:
                raise InputError(
                    f"{name!r} is no option of encode_file.{closest(name, list(OPTIONS))} Allowed: "
                    f"{', '.join(OPTIONS)}"
                )
        given = dict(options)
        self.precision = str(given.pop("precision", None) or "float32")
        Options(precision=self.precision)  # says what is allowed
        self.set_aside = set_aside
        # Vectors are made smaller here: after the check for NaN, and by ranges all blocks share.
        encode: Any = model.encode
        self.encode = partial(encode, **given, show_progress=False)
        self.ranges: npt.NDArray[np.float32] | None = None
        self.kernels: Mode = "off"
        nothing = self.encode([])
        dense, sparse, tokens = _heads(nothing)
        self.needs_ranges = self.precision in _WITH_RANGES and dense is not None
        self.vocabulary = 0 if sparse is None else int(sparse.shape[1])
        self.width = 0 if tokens is None else self.encode(["a"]).multi_vector[0].shape[1]
        self.empty = self._block(nothing, [], "", [])
        """A block of no texts: which arrays there are, their widths and types."""

    def __call__(self, records: Sequence[Record], name: str) -> Block:
        """Return the block of these records; bad ones are set aside or raise RecordError."""
        good = [record for record in records if record.error is None]
        bad = [record for record in records if record.error is not None]
        self._complain(bad, name)
        found = self.encode([record.text for record in good])
        wrong = _not_finite(found)
        if wrong:
            reason = "the model gave NaN or infinity for it; try dtype float32"
            bad += [replace(good[i], error=reason, raw=good[i].text[:200]) for i in wrong]
            self._complain(bad, name)
            good = [record for i, record in enumerate(good) if i not in wrong]
            found = self.encode([record.text for record in good])
        return self._block(found, good, name, bad)

    def find_ranges(self, texts: Sequence[str]) -> None:
        """Widen the ranges of int8 and uint8 by these texts' vectors."""
        dense, _, _ = _heads(self.encode(texts))
        if dense is None or not len(dense):
            return
        found = ranges_of(dense)
        if self.ranges is not None:
            low, high = zip(self.ranges, found, strict=True)
            found = np.vstack([np.minimum(*low), np.maximum(*high)])
        self.ranges = found.astype(np.float32)

    def _complain(self, bad: Sequence[Record], name: str) -> None:
        if bad and not self.set_aside:
            raise RecordError(
                f"{name}:{bad[0].place}: {bad[0].error}. Mend the record, or set bad ones aside "
                "with --rejects FILE (rejects=)"
            )

    def _block(self, found: Any, good: Sequence[Record], name: str, bad: Sequence[Record]) -> Block:
        block: Block = {}
        dense, sparse, tokens = _heads(found)
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
        block["columns"] = _bytes([record.columns for record in good])
        block["rejects"] = _bytes([_reject(r, name) for r in sorted(bad, key=lambda r: r.place)])
        return block

    def _smaller(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        ranges = self.ranges
        if self.needs_ranges and ranges is None:
            if len(vectors):
                ranges = self.ranges = ranges_of(vectors)
            else:
                ranges = np.zeros((2, vectors.shape[1]), np.float32)
        return quantize(vectors, self.precision, ranges)


def _heads(found: Any) -> tuple[npt.NDArray[Any] | None, Any, Any]:
    if isinstance(found, np.ndarray):
        return found, None, None
    return found.dense, found.sparse, found.multi_vector


def _not_finite(found: Any) -> set[int]:
    """Return which texts have NaN or infinity in any of their outputs."""
    dense, sparse, tokens = _heads(found)
    wrong: set[int] = set()
    if dense is not None:
        wrong |= set(np.flatnonzero(~np.isfinite(dense).all(axis=1)).tolist())
    if sparse is not None:
        entries = sparse.tocoo()
        wrong |= set(entries.row[~np.isfinite(entries.data)].tolist())
    return wrong | {i for i, vectors in enumerate(tokens or ()) if not np.isfinite(vectors).all()}


def _bytes(given: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("".join(f"{line}\n" for line in given).encode("utf-8"), dtype=np.uint8)


def _reject(record: Record, name: str) -> str:
    facts = {"file": name, "line": record.place, "error": record.error, "record": record.raw}
    return json.dumps(facts, ensure_ascii=False)
