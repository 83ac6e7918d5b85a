"""Vectors in small integers, which know what their integers stand for, and the ranges of these.

An int8 array may hold the steps of each dimension's range or the packed signs of eight dimensions a
byte; nothing in the bytes tells which. `Quantized` arrays say it, so that packed bits are never
compared as numbers.

Shapes: n texts, D width, W bytes of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from embedlm.errors import InputError, ModelError

__all__ = ["RANGES_FILE", "Quantized", "Ranges", "check_ranges", "dequantize", "in_floats"]

Array = npt.NDArray[Any]
RANGES_FILE = "ranges.safetensors"
"""The file of a saved model that holds its fitted ranges."""
STEPS = 255
BITS = ("binary", "ubinary")
_DTYPES = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}


class Quantized(np.ndarray[Any, Any]):
    """An array of 8-bit integers with the meaning of its integers."""

    precision: str | None
    dim: int | None
    """Dimensions that a row of packed bits holds."""
    ranges: Array | None
    """(2, D): what the steps of int8 and uint8 lie between."""

    @classmethod
    def of(
        cls, values: Array, precision: str, *, dim: int | None = None, ranges: Array | None = None
    ) -> Quantized:
        """Return integers with their meaning."""
        marked = values.view(cls)
        marked.precision, marked.dim, marked.ranges = precision, dim, ranges
        return marked

    def __array_finalize__(self, source: Any) -> None:
        for name in ("precision", "dim", "ranges"):
            setattr(self, name, getattr(source, name, None))

    def __reduce__(self) -> Any:
        facts = {"precision": self.precision, "dim": self.dim, "ranges": self.ranges}
        return _restored, (np.asarray(self), facts)


def _restored(values: Array, facts: Mapping[str, Any]) -> Array:
    """Return an array that was pickled."""
    return values if facts["precision"] is None else Quantized.of(values, **facts)


def check_ranges(ranges: Any, width: int, name: str = "ranges") -> Array:
    """Return the minima and maxima of each dimension, (2, width).

    Raises:
        InputError: another shape, no numbers, NaN or infinity, or a minimum above its maximum.
    """
    try:
        low_high_2D = np.asarray(ranges)
        if low_high_2D.dtype.kind not in "fiu":
            raise TypeError(low_high_2D.dtype)
        if low_high_2D.dtype.kind != "f":
            low_high_2D = low_high_2D.astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} are no array of numbers; give (2, {width})") from error
    if low_high_2D.shape != (2, width):
        raise InputError(
            f"{name} have the shape {low_high_2D.shape}; give (2, {width}): minima, maxima"
        )
    if not np.isfinite(low_high_2D).all():
        dimension = int(np.flatnonzero(~np.isfinite(low_high_2D).all(axis=0))[0])
        raise InputError(f"{name} hold NaN or infinity for dimension {dimension}; give numbers")
    with np.errstate(over="ignore"):
        wide_D = ~np.isfinite(low_high_2D[1] - low_high_2D[0])
    if wide_D.any():
        raise InputError(
            f"{name} are too far apart for {low_high_2D.dtype} in dimension "
            f"{int(np.flatnonzero(wide_D)[0])}; scale the vectors down"
        )
    if (low_high_2D[0] > low_high_2D[1]).any():
        dimension = int(np.flatnonzero(low_high_2D[0] > low_high_2D[1])[0])
        raise InputError(
            f"{name} have a minimum above the maximum for dimension {dimension}; give minima in "
            "the first row and maxima in the second"
        )
    return low_high_2D


Form = tuple[int, bool]
"""Width of vectors, and whether they have length 1."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Fitted ranges, (2, D) for each form of vectors that they were fitted for."""

    by_form: Mapping[Form, Array] = field(default_factory=dict)

    def with_form(self, form: Form, ranges: Array) -> Ranges:
        """Return these ranges and those of a further form."""
        return Ranges({**self.by_form, form: ranges})

    def save(self, folder: Path) -> None:
        """Write the ranges into a model's folder."""
        if self.by_form:
            tensors = {
                f"{width}.{'unit' if unit else 'plain'}": np.ascontiguousarray(ranges)
                for (width, unit), ranges in self.by_form.items()
            }
            save_file(tensors, folder / RANGES_FILE)

    @classmethod
    def load(cls, folder: Path) -> Ranges:
        """Return the ranges of a model's folder; none where it has no such file.

        Raises:
            ModelError: a damaged file.
        """
        file = folder / RANGES_FILE
        if not file.is_file():
            return cls()
        try:
            by_form = {}
            for name, ranges in load_file(file).items():
                width, _, kind = name.partition(".")
                if kind not in ("unit", "plain"):
                    raise ValueError(name)
                by_form[int(width), kind == "unit"] = check_ranges(ranges, int(width))
        except (OSError, SafetensorError, ValueError) as error:
            raise ModelError(
                f"{file} cannot be read as the ranges of int8 and uint8 ({error}); remove it, or "
                "call fit_ranges and save the model again"
            ) from error
        return cls(by_form)


def dequantize(
    vectors: Any, precision: str, ranges: Any = None, *, dim: int | None = None
) -> npt.NDArray[np.float32]:
    """Return what quantised vectors stand for, as float32.

    Args:
        vectors: (n, W) integers, as `quantize` gives them; also read back from a file.
        precision: int8 or uint8, whose steps become the middle of each step; binary or ubinary,
            whose bits become 1 and -1, so that every similarity orders by Hamming distance.
        ranges: (2, D), of int8 and uint8.
        dim: dimensions of packed bits; None: eight a byte.

    Raises:
        InputError: another dtype or shape, or int8 and uint8 without their ranges.
    """
    if precision not in _DTYPES:
        raise InputError(f"precision is {precision!r}; allowed: {', '.join(_DTYPES)}")
    values = np.asarray(vectors)
    if values.dtype != _DTYPES[precision] or values.ndim not in (1, 2):
        raise InputError(
            f"vectors are {values.dtype} with the shape {values.shape}; {precision} is "
            f"{np.dtype(_DTYPES[precision])} with (n, width)"
        )
    if precision in BITS:
        count = 8 * values.shape[-1] if dim is None else dim
        if not 8 * (values.shape[-1] - 1) < count <= 8 * values.shape[-1]:
            raise InputError(f"dim is {dim}, but {values.shape[-1]} bytes hold other dimensions")
        if precision == "binary":
            values = (values.astype(np.int16) + 128).astype(np.uint8)
        signs = np.unpackbits(values, axis=-1, count=count).astype(np.float32)
        return 2 * signs - 1
    if ranges is None:
        raise InputError(
            f"{precision} vectors stand for numbers by their ranges alone, which are not known "
            "here; give the array as encode returned it, call fit_ranges on the model, or turn it "
            "into floats with embedlm.dequantize(vectors, precision, ranges)"
        )
    low_D, high_D = check_ranges(ranges, values.shape[-1]).astype(np.float32)
    steps = values.astype(np.float32) + (128 if precision == "int8" else 0)
    return np.asarray(low_D + (steps + 0.5) * ((high_D - low_D) / STEPS), dtype=np.float32)


def in_floats(vectors: Any, *, dim: int | None = None, ranges: Array | None = None) -> Any:
    """Return dense vectors as numbers that can be compared; what is no 8-bit integer stays.

    Args:
        vectors: an array. Where it does not say what its integers stand for, as after a file, it
            holds packed bits if its width is that of the model's.
        dim: width of the model's vectors.
        ranges: fitted ones of that width, which are used for an array that does not say its own.

    Raises:
        InputError: it cannot be told what the integers stand for.
    """
    if getattr(vectors, "dtype", None) not in (np.int8, np.uint8):
        return vectors
    precision = getattr(vectors, "precision", None)
    if precision in BITS:
        return dequantize(vectors, precision, dim=vectors.dim)
    width, signed = vectors.shape[-1] if vectors.ndim else 0, vectors.dtype == np.int8
    if precision is None and width and dim is not None:
        if width == -(-dim // 8) != dim:
            return dequantize(vectors, "binary" if signed else "ubinary", dim=dim)
        if width == dim:
            precision = "int8" if signed else "uint8"
    if precision is None:
        raise InputError(
            f"the vectors are {vectors.dtype} of width {width}, and it cannot be told whether they "
            "are steps (int8, uint8) or packed bits (binary, ubinary); give the array as encode "
            "returned it, or turn it into floats with embedlm.dequantize(vectors, precision)"
        )
    own = getattr(vectors, "ranges", None)
    return dequantize(vectors, precision, ranges if own is None else own)
