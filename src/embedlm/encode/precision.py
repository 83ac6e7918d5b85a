"""Smaller vectors: fewer dimensions, fewer bits; integers equal sentence-transformers 6."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.encode.options import PRECISIONS, Options
from embedlm.errors import InputError, closest
from embedlm.readout.frequency import Statistics
from embedlm.readout.similarity import normalize
from embedlm.schema.recipe import Recipe

__all__ = ["PRECISIONS", "finish_vectors", "quantize", "ranges_of", "truncate"]

Array = npt.NDArray[Any]


def truncate(vectors: Array, dim: int, *, renormalize: bool) -> Array:
    """Return the first `dim` dimensions, (n, dim), L2-normalised again if `renormalize`."""
    width = vectors.shape[-1]
    if not 0 < dim <= width:
        raise InputError(f"dim is {dim}; allowed are 1 to {width}, the width of the vectors")
    cut = vectors[..., :dim]
    if renormalize:
        cut = cut / np.maximum(np.linalg.norm(cut, axis=-1, keepdims=True), 1e-12)
    return cut


def finish_vectors(
    vectors_nD: Array, recipe: Recipe, statistics: Statistics | None, options: Options
) -> Array:
    """Return pooled vectors as a call asks for them: their width, length and precision.

    Args:
        vectors_nD: as they come from the dense head.
        recipe: says whether vectors are normalised, where the call does not.
        statistics: of a fitted corpus, whose common components are taken out.
        options: of the call.
    """
    unit = recipe.normalize if options.normalize is None else options.normalize
    if statistics is not None:
        vectors_nD = statistics.remove_components(vectors_nD)
    dim = recipe.dim if options.dim is None else options.dim
    kept = dim is not None and not recipe.renormalize and options.normalize is not False
    if recipe.normalize and (options.cut_last or kept):
        vectors_nD, unit = normalize(vectors_nD), bool(options.normalize)
    if dim is not None:
        vectors_nD = truncate(vectors_nD, dim, renormalize=False)
    if unit:
        vectors_nD = normalize(vectors_nD)
    return quantize(vectors_nD, options.precision)


def ranges_of(vectors: Array) -> Array:
    """Return the minimum and maximum of each dimension, (2, D)."""
    return np.vstack([vectors.min(axis=0), vectors.max(axis=0)])


def quantize(
    vectors: Array,
    precision: str,
    ranges: Array | None = None,
    calibration: Array | None = None,
) -> Array:
    """Return the vectors in a smaller type.

    int8 and uint8 map each dimension's range to 256 steps: floor((x - min) / step), clipped.
    Binary keeps the sign of each dimension, eight to a byte: ubinary as uint8, binary as int8
    (the byte - 128).

    Args:
        vectors: (n, D) floats.
        precision: float32, float16, int8, uint8, binary or ubinary.
        ranges: (2, D) minimum and maximum of each dimension, for int8 and uint8.
        calibration: (m, D) vectors to take the ranges from; without either, `vectors` themselves,
            so that the integers of a text then depend on the others it came with.

    Raises:
        InputError: an unknown precision, ranges of another shape, NaN.
    """
    if precision not in PRECISIONS:
        raise InputError(
            f"precision {precision!r} is not known; allowed: {', '.join(PRECISIONS)}."
            + closest(precision, list(PRECISIONS))
        )
    values = np.asarray(vectors)
    if values.ndim != 2:
        raise InputError(f"vectors have the shape {values.shape}; give (n, dim)")
    if precision in ("float32", "float16"):
        return values.astype(precision)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise InputError(f"vector {row} holds NaN or infinity and cannot become {precision}")
    if precision in ("binary", "ubinary"):
        packed = np.packbits(values > 0, axis=-1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    return _to_bytes(values, precision, ranges, calibration)


def _to_bytes(
    values: Array, precision: str, ranges: Array | None, calibration: Array | None
) -> Array:
    width = values.shape[1]
    if ranges is None:
        source = values if calibration is None else np.asarray(calibration)
        if source.ndim != 2 or source.shape[1] != width or len(source) == 0:
            raise InputError(
                f"{'calibration' if calibration is not None else 'vectors'} have the shape "
                f"{source.shape}; {precision} needs (m, {width}) with m > 0 to find its ranges"
            )
        ranges = ranges_of(source)
    ranges = np.asarray(ranges)
    if ranges.shape != (2, width):
        raise InputError(f"ranges have the shape {ranges.shape}; give (2, {width}): minima, maxima")
    low, high = ranges
    steps = (high - low) / 255
    steps = np.where(steps == 0, np.ones_like(steps), steps)
    scaled = np.clip(np.floor((values - low) / steps), 0, 255)
    if precision == "uint8":
        return np.asarray(scaled, dtype=np.uint8)
    return np.asarray(scaled - 128, dtype=np.int8)
