"""The three forms in which heads give vectors, as a store keeps, joins and writes them.

The form is recognised by the value, not by the head's name, so that a new head needs no change.

Shapes: n documents, D width, V terms, T tokens of all documents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, issparse, vstack

from embedlm.errors import InputError
from embedlm.readout.quantized import in_floats

__all__ = [
    "VECTOR_FORMS",
    "VectorForm",
    "gathered",
    "pack_heads",
    "unpack_header",
    "unpack_heads",
    "vector_form",
]

PackedArrays = dict[str, npt.NDArray[Any]]


class VectorForm(Protocol):
    """What a store does with the vectors of one form."""

    name: ClassVar[str]

    @staticmethod
    def check(value: Any) -> Any:
        """Return float32 vectors; raise InputError where they cannot be compared."""

    @staticmethod
    def width(value: Any) -> int | None:
        """Return the width D or V; None where no vector shows it."""

    @staticmethod
    def count(value: Any) -> int:
        """Return the number of documents n."""

    @staticmethod
    def take(value: Any, rows: list[int]) -> Any:
        """Return the vectors of some documents."""

    @staticmethod
    def join(first: Any, second: Any) -> Any:
        """Return the vectors of both, one after the other."""

    @staticmethod
    def pack(value: Any) -> PackedArrays:
        """Return arrays that can be written."""

    @staticmethod
    def unpack(arrays: PackedArrays) -> Any:
        """Return what was packed."""


class DenseForm:
    """One array, (n, D)."""

    name: ClassVar[str] = "dense"

    @staticmethod
    def check(value: Any) -> Any:
        """Refuse other shapes and values that are not finite; packed bits become 1 and -1.

        So every similarity orders packed bits by Hamming distance, and int8 by what it stands for.
        """
        try:
            rows_nD = np.asarray(in_floats(np.asanyarray(value)), dtype=np.float32)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"dense vectors are no array of numbers ({error})") from error
        if rows_nD.ndim != 2:
            raise InputError(f"dense vectors have the shape {rows_nD.shape}; give (n, width)")
        _check_finite(rows_nD)
        return rows_nD

    @staticmethod
    def width(value: Any) -> int | None:
        """Return D."""
        return int(value.shape[1])

    @staticmethod
    def count(value: Any) -> int:
        """Return n."""
        return int(value.shape[0])

    @staticmethod
    def take(value: Any, rows: list[int]) -> Any:
        """Return some rows."""
        return value[rows]

    @staticmethod
    def join(first: Any, second: Any) -> Any:
        """Return the rows of both."""
        return np.concatenate([first, second])

    @staticmethod
    def pack(value: Any) -> PackedArrays:
        """Return the array."""
        return {"rows": value}

    @staticmethod
    def unpack(arrays: PackedArrays) -> Any:
        """Return the array."""
        return arrays["rows"]


class SparseForm(DenseForm):
    """One sparse matrix, (n, V)."""

    name: ClassVar[str] = "sparse"

    @staticmethod
    def check(value: Any) -> Any:
        """Refuse values that are not finite."""
        matrix = csr_matrix(value, dtype=np.float32)
        _check_finite(matrix.data)
        return matrix

    @staticmethod
    def join(first: Any, second: Any) -> Any:
        """Return the rows of both."""
        return csr_matrix(vstack([first, second]))

    @staticmethod
    def pack(value: Any) -> PackedArrays:
        """Return the matrix's three arrays and its shape."""
        arrays = {name: getattr(value, name) for name in ("data", "indices", "indptr")}
        return {**arrays, "shape": np.array(value.shape)}

    @staticmethod
    def unpack(arrays: PackedArrays) -> Any:
        """Return the matrix."""
        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        return csr_matrix(parts, shape=tuple(arrays["shape"].tolist()))


class TokenForm:
    """A list of n arrays, (tokens, D) each."""

    name: ClassVar[str] = "tokens"

    @staticmethod
    def check(value: Any) -> Any:
        """Refuse other shapes, mixed widths and values that are not finite."""
        arrays = [np.asarray(array, dtype=np.float32) for array in value]
        widths = {array.shape[1:] for array in arrays if array.size}
        if len(widths) > 1 or any(len(width) != 1 for width in widths):
            raise InputError(
                f"token vectors have the shapes (tokens, *width) with the widths {sorted(widths)}; "
                "give one array (tokens, D) for each text, all of one D"
            )
        for array in arrays:
            _check_finite(array)
        return arrays

    @staticmethod
    def width(value: Any) -> int | None:
        """Return D, where any text has a token."""
        return next((int(array.shape[1]) for array in value if array.size), None)

    @staticmethod
    def count(value: Any) -> int:
        """Return n."""
        return len(value)

    @staticmethod
    def take(value: Any, rows: list[int]) -> Any:
        """Return the arrays of some texts."""
        return [value[i] for i in rows]

    @staticmethod
    def join(first: Any, second: Any) -> Any:
        """Return the arrays of both."""
        return [*first, *second]

    @staticmethod
    def pack(value: Any) -> PackedArrays:
        """Return all tokens in one array, and how many each text has."""
        filled = [array for array in value if array.size]
        tokens_TD = np.concatenate(filled) if filled else np.zeros((0, 0), dtype=np.float32)
        lengths = [len(array) if array.size else 0 for array in value]
        return {"tokens": tokens_TD, "lengths": np.array(lengths, dtype=np.int64)}

    @staticmethod
    def unpack(arrays: PackedArrays) -> Any:
        """Return the arrays."""
        ends = np.cumsum(arrays["lengths"])
        parts: list[npt.NDArray[np.float32]] = np.split(arrays["tokens"], ends[:-1])
        return parts[: len(ends)]


VECTOR_FORMS: dict[str, type[VectorForm]] = {
    "dense": DenseForm,
    "sparse": SparseForm,
    "tokens": TokenForm,
}
"""The forms by name; the name is stored in the files that hold such vectors."""


def vector_form(value: Any) -> type[VectorForm]:
    """Return the form of a head's output."""
    if issparse(value):
        return SparseForm
    if hasattr(value, "shape"):
        return DenseForm
    return TokenForm


def gathered(form: str, width: int, values: Sequence[Any]) -> Any:
    """Return one head's vectors of plain values, as points hold them; None: an empty one.

    Args:
        form: a name of `VECTOR_FORMS`.
        width: D or V.
        values: lists, lists of lists, or what has indices and values.
    """
    if form == "dense":
        return np.array(values, dtype=np.float32)
    if form == "tokens":
        return [np.array(value or [], dtype=np.float32).reshape(-1, width) for value in values]
    indices = [[] if value is None else value.indices for value in values]
    numbers = [[] if value is None else value.values for value in values]
    starts = np.cumsum([0, *map(len, indices)])
    parts = (np.array([*chain(*numbers)], np.float32), np.array([*chain(*indices)], np.int32))
    return csr_matrix((*parts, starts), shape=(len(values), width))


def _check_finite(values: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        rows = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        raise InputError(
            f"the vectors hold NaN or infinity, or numbers beyond float32 (row {rows[0]}); give "
            "finite numbers, and load a model that gave them with dtype='float32'"
        )


def pack_heads(vectors: Mapping[str, Any], header: Mapping[str, Any]) -> PackedArrays:
    """Return the arrays of a .npz file that holds vectors by head, and a header of JSON values."""
    forms = {head: vector_form(value) for head, value in vectors.items()}
    named = {**header, "forms": {head: form.name for head, form in forms.items()}}
    arrays = {"header": np.frombuffer(json.dumps(named).encode(), dtype=np.uint8)}
    for head, form in forms.items():
        for name, array in form.pack(vectors[head]).items():
            arrays[f"{head}.{name}"] = array
    return arrays


def unpack_header(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of what `pack_heads` packed."""
    header: dict[str, Any] = json.loads(arrays["header"].tobytes())
    return header


def unpack_heads(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vectors of what `pack_heads` packed, by head."""
    return {
        head: VECTOR_FORMS[form].unpack(
            {
                name.removeprefix(f"{head}."): array
                for name, array in arrays.items()
                if name.startswith(f"{head}.")
            }
        )
        for head, form in unpack_header(arrays)["forms"].items()
    }
