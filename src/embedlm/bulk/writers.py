"""Puts finished blocks together into one file: .npy, .npz, .jsonl or .parquet, a block at a time.

The bytes depend on the blocks alone (no dates, no order of completion), so that a job that was
killed and resumed gives the file of one that was not.

    .npy      the dense vectors
    .npz      dense; of sparse vectors indptr, indices, data, shape, format (scipy.sparse.load_npz
              opens it); of token vectors multi_vector and offsets: text i has the rows
              offsets[i] to offsets[i + 1]
    .jsonl    {"id": ..., kept fields, "dense": [...], "sparse": {"token id": weight},
              "multi_vector": [[...], ...]}
    .parquet  the same as columns; sparse as sparse_indices and sparse_values
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from embedlm.bulk.blocks import Block, finished_block, lines_of
from embedlm.errors import require
from embedlm.jobs import Job
from embedlm.jobs.json_files import json_text
from embedlm.readout.embeddings import Array

__all__ = ["OUTPUT_COLUMNS", "WRITERS", "Finished"]

OUTPUT_COLUMNS = ("dense", "sparse", "sparse_indices", "sparse_values", "multi_vector")
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Finished:
    """The finished blocks of a job, in order."""

    job: Job
    count: int
    empty: Block
    """A block without texts; it shows the names, widths and types of the arrays."""
    vocabulary: int = 0
    """Width of sparse vectors."""

    def blocks(self) -> Iterator[Block]:
        """Yield block after block."""
        for index in range(self.count):
            yield finished_block(self.job, index)

    def arrays(self, name: str) -> Iterator[Array]:
        """Yield one array of each block."""
        for index in range(self.count):
            yield finished_block(self.job, index, (name,))[name]

    def total(self, name: str) -> int:
        """Return the length of an array over all blocks."""
        return sum(len(array) for array in self.arrays(name))

    def count_lines(self, name: str) -> int:
        """Return the number of lines of an array over all blocks."""
        return sum(int((array == ord("\n")).sum()) for array in self.arrays(name))


def write_npy(handle: BinaryIO, done: Finished) -> None:
    """Write dense vectors, (n, D)."""
    _array(handle, done, "dense")


def _array(handle: Any, done: Finished, name: str) -> None:
    empty = done.empty[name]
    _header(handle, empty.dtype, (done.total(name), *empty.shape[1:]))
    for array in done.arrays(name):
        handle.write(np.ascontiguousarray(array).tobytes())


def _header(handle: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    facts = {"descr": description, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, facts)


def write_npz(handle: BinaryIO, done: Finished) -> None:
    """Write the arrays of all heads."""
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:

        def member(name: str, write: Callable[[Any], object]) -> None:
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            with archive.open(info, "w", force_zip64=True) as file:
                write(file)

        if "dense" in done.empty:
            member("dense", lambda file: _array(file, done, "dense"))
        if "indices" in done.empty:
            shape = np.array([done.total("counts"), done.vocabulary], dtype=np.int64)
            member("data", lambda file: _array(file, done, "data"))
            member("indices", lambda file: _array(file, done, "indices"))
            member("indptr", lambda file: _starts(file, done, "counts"))
            member("shape", lambda file: np.save(file, shape))
            member("format", lambda file: np.save(file, np.array(b"csr")))
        if "tokens" in done.empty:
            member("multi_vector", lambda file: _array(file, done, "tokens"))
            member("offsets", lambda file: _starts(file, done, "lengths"))


def _starts(handle: Any, done: Finished, name: str) -> None:
    """Write the running sum of counts, with a 0 before."""
    _header(handle, np.int64, (done.total(name) + 1,))
    reached = np.zeros(1, dtype=np.int64)
    handle.write(reached.tobytes())
    for counts in done.arrays(name):
        sums = reached[-1] + np.cumsum(counts, dtype=np.int64)
        handle.write(sums.tobytes())
        reached = sums[-1:] if len(sums) else reached


def write_jsonl(handle: BinaryIO, done: Finished) -> None:
    """Write one object on each line."""
    for block in done.blocks():
        for row, columns in enumerate(_rows(block)):
            parts = [columns[:-1] if columns != "{}" else "{"]
            parts += [f'"{name}": {value}' for name, value in _values(block, row)]
            line = ", ".join(parts).replace("{, ", "{", 1)
            handle.write(line.encode("utf-8") + b"}\n")


def _rows(block: Block) -> list[str]:
    return lines_of(block["columns"])


def _values(block: Block, row: int) -> Iterator[tuple[str, str]]:
    """Yield the heads' outputs of one text as JSON."""
    if "dense" in block:
        yield "dense", _numbers(block["dense"][row])
    if "indices" in block:
        start, end = _span(block["counts"], row)
        weights = _format(block["data"][start:end])
        pairs = zip(block["indices"][start:end].tolist(), weights, strict=True)
        yield "sparse", "{" + ", ".join(f'"{index}": {value}' for index, value in pairs) + "}"
    if "tokens" in block:
        start, end = _span(block["lengths"], row)
        vectors = block["tokens"][start:end]
        yield "multi_vector", "[" + ", ".join(_numbers(vector) for vector in vectors) + "]"


def _span(counts: Array, row: int) -> tuple[int, int]:
    start = int(counts[:row].sum())
    return start, start + int(counts[row])


def _format(values: Array) -> list[str]:
    # Nine significant digits give every float32 back exactly; Python's own repr would write the
    # float64 nearest to it, with seventeen.
    if values.dtype.kind == "f":
        return [f"{value:.9g}" for value in values.tolist()]
    return [str(value) for value in values.tolist()]


def _numbers(vector: Array) -> str:
    return "[" + ", ".join(_format(vector)) + "]"


def write_parquet(handle: BinaryIO, done: Finished) -> None:
    """Write a table with one row group for each block."""
    arrow = require("pyarrow", "parquet")
    parquet = require("pyarrow.parquet", "parquet")
    types = _column_types(done)
    schema = _table(arrow, done.empty, [], types).schema
    with parquet.ParquetWriter(handle, schema) as writer:
        for block in done.blocks():
            rows = [json.loads(line) for line in _rows(block)]
            if rows:
                writer.write_table(_table(arrow, block, rows, types))


def _column_types(done: Finished) -> dict[str, set[str]]:
    """Return which JSON types each kept field has, over all blocks."""
    types: dict[str, set[str]] = {}
    for array in done.arrays("columns"):
        for line in lines_of(array):
            for name, value in json.loads(line).items():
                types.setdefault(name, set()).add(_type_of(value))
    return types or {"id": set()}


def _type_of(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "huge"
    return type(value).__name__


def _table(arrow: Any, block: Block, rows: Sequence[dict[str, Any]], types: Any) -> Any:
    names, arrays = [], []
    for name, column_types in types.items():
        names.append(name)
        arrays.append(_column(arrow, [row.get(name) for row in rows], column_types - {"NoneType"}))
    if "dense" in block:
        names.append("dense")
        arrays.append(_fixed(arrow, block["dense"]))
    if "indices" in block:
        offsets = arrow.array(_offsets(block["counts"]))
        names += ["sparse_indices", "sparse_values"]
        for key in ("indices", "data"):
            arrays.append(arrow.ListArray.from_arrays(offsets, arrow.array(block[key])))
    if "tokens" in block:
        names.append("multi_vector")
        offsets = arrow.array(_offsets(block["lengths"]))
        arrays.append(arrow.ListArray.from_arrays(offsets, _fixed(arrow, block["tokens"])))
    return arrow.table(arrays, names=names)


def _offsets(counts: Array) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _fixed(arrow: Any, vectors: Array) -> Any:
    flat = arrow.array(np.ascontiguousarray(vectors).ravel())
    return arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def _column(arrow: Any, values: list[Any], types: set[str]) -> Any:
    """Return a column in the one type that all its values have, else as strings."""
    if types in ({"int"}, {"bool"}):
        return arrow.array(values, arrow.int64() if types == {"int"} else arrow.bool_())
    if types in ({"float"}, {"int", "float"}):
        return arrow.array(values, arrow.float64())
    texts = [v if isinstance(v, str) or v is None else json_text(v) for v in values]
    return arrow.array(texts, arrow.string())


WRITERS: dict[str, Callable[[BinaryIO, Finished], None]] = {
    ".npy": write_npy,
    ".npz": write_npz,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}
"""The writer for each suffix of the output; a line here adds a format."""
