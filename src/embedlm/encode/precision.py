"""Smaller vectors: fewer dimensions, fewer bits; integers equal sentence-transformers 6."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.encode.options import PRECISIONS, Options
from embedlm.errors import InputError, closest
from embedlm.readout.frequency import Statistics
from embedlm.readout.quantized import STEPS, Form, Quantized, Ranges, check_ranges
from embedlm.readout.similarity import normalize
from embedlm.schema.arguments import check_arguments
from embedlm.schema.recipe import Recipe

__all__ = [
    "PRECISIONS",
    "RANGE_OPTIONS",
    "WITH_RANGES",
    "finish_vectors",
    "fitted_ranges",
    "quantize",
    "ranges_for",
    "ranges_of",
    "truncate",
    "vector_form",
]

FEWEST = 100
"""Vectors that may be their own ranges: as many as sentence-transformers asks for."""

Array = npt.NDArray[Any]
WITH_RANGES = ("int8", "uint8")
"""Precisions that need the range of each dimension."""


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
    vectors_nD: Array,
    recipe: Recipe,
    statistics: Statistics | None,
    options: Options,
    ranges: Ranges | None = None,
) -> Array:
    """Return pooled vectors as a call asks for them: their width, length and precision.

    Args:
        vectors_nD: as they come from the dense head.
        recipe: says whether vectors are normalised, where the call does not.
        statistics: of a fitted corpus, whose common components are taken out.
        options: of the call.
        ranges: fitted ones, for int8 and uint8 where the call gives none.

    Raises:
        InputError: a width that the vectors do not have; or int8 and uint8 without ranges.
    """
    width = vectors_nD.shape[1]
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
    if options.precision not in WITH_RANGES:
        return quantize(vectors_nD, options.precision)
    low_high = options.ranges
    if low_high is None and len(vectors_nD):
        low_high = ranges_for(options, ranges or Ranges(), recipe, width)
    return quantize(vectors_nD, options.precision, low_high)


def vector_form(options: Options, recipe: Recipe, width: int) -> Form:
    """Return the form of the vectors of a call, for which ranges are fitted.

    Args:
        options: of the call.
        recipe: of the model.
        width: of its dense vectors before a cut.
    """
    unit = recipe.normalize if options.normalize is None else options.normalize
    dim = options.dim or recipe.dim or width
    if options.cut_last:  # normalised before the cut, which matters where there is one
        unit = bool(options.normalize) or (recipe.normalize and dim == width)
    return dim, bool(unit)


def ranges_for(options: Options, ranges: Ranges, recipe: Recipe, width: int) -> Array:
    """Return the fitted ranges of a call's vectors, or those that they are cut from.

    Args:
        options: of the call.
        ranges: those that were fitted.
        recipe: of the model.
        width: of its dense vectors before a cut.

    Raises:
        InputError: none were fitted for such vectors.
    """
    form = dim, unit = vector_form(options, recipe, width)
    found = None if options.cut_last and dim < width and not unit else ranges.by_form.get(form)
    if found is None and not unit:
        # Vectors that are only cut have the ranges of their first dimensions.
        wider = [width] if options.cut_last else [width, recipe.dim or width]
        wholes = (ranges.by_form.get((one, options.cut_last)) for one in wider if dim <= one)
        found = next((whole[:, :dim] for whole in wholes if whole is not None), None)
    if found is not None:
        return found
    call = "" if options.dim is None else f", dim={dim}"
    call += "" if unit == recipe.normalize else f", normalize={unit}"
    known = ", ".join(f"{d}{' (length 1)' if u else ''}" for d, u in ranges.by_form) or "none"
    raise InputError(
        f"{options.precision} needs the range of each dimension, and this model has none for "
        f"vectors of width {dim}{' and length 1' if unit else ''} (fitted: {known}). Fit them once "
        f"with fit_ranges(texts{call}), which save_pretrained keeps, or give ranges=(minima, "
        f"maxima) of shape (2, {dim}); `embedlm encode` takes texts for this as --calibration"
    )


def ranges_of(vectors: Array) -> Array:
    """Return the minimum and maximum of each dimension, (2, D)."""
    return np.vstack([vectors.min(axis=0), vectors.max(axis=0)])


RANGE_OPTIONS = (
    "role",
    "instruction",
    "demonstrations",
    "dim",
    "normalize",
    "batch_tokens",
    "show_progress",
    "max_length",
    "adapter",
    "prompt",
    "prompt_name",
)
"""Options of `encode` that ranges are fitted with."""


def fitted_ranges(vectors: Array) -> Array:
    """Return the ranges of a corpus's vectors, (2, D).

    Raises:
        InputError: no vectors, or vectors that are all the same.
    """
    if vectors.ndim < 2 or len(vectors) < 2 or (vectors == vectors[0]).all():
        raise InputError(
            "these texts tell no ranges, as their vectors are none or all the same; give a list of "
            "a few hundred different texts, like those that will be encoded"
        )
    return ranges_of(vectors)


def quantize(
    vectors: Array,
    precision: str,
    ranges: Array | None = None,
    calibration: Array | None = None,
) -> Array:
    """Return the vectors in a smaller type; arrays of 8-bit integers know what they stand for.

    int8 and uint8 map each dimension's range to 256 steps: floor((x - min) / step), clipped.
    Binary keeps the sign of each dimension, eight to a byte: ubinary as uint8, binary as int8
    (the byte - 128).

    Args:
        vectors: (n, D) floats.
        precision: float32, float16, int8, uint8, binary or ubinary.
        ranges: (2, D) minimum and maximum of each dimension, for int8 and uint8.
        calibration: (m, D) vectors to take the ranges from; without either, `vectors` themselves
            where they are 100 or more, so that the integers of a text then depend on the others.

    Raises:
        InputError: an unknown precision, no ranges, ranges of another shape, NaN, or numbers that
            float16 or float32 cannot hold.
    """
    check_arguments("encode", precision=precision)
    if precision not in PRECISIONS:
        raise InputError(
            f"precision {precision!r} is not known; allowed: {', '.join(PRECISIONS)}."
            + closest(precision, list(PRECISIONS))
        )
    values = np.asarray(vectors)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise InputError(
            f"vectors are {values.dtype} with the shape {values.shape}; give numbers (n, dim)"
        )
    with np.errstate(all="ignore"):  # what cannot be held is found and told
        return _quantized(values, precision, ranges, calibration)


def _quantized(values: Array, precision: str, ranges: Any, calibration: Any) -> Array:
    _refuse_unfinished(values, precision)
    if precision in ("float32", "float16"):
        return values.astype(precision)
    if precision in ("binary", "ubinary"):
        packed = np.packbits(values > 0, axis=-1)
        if precision == "binary":
            packed = (packed.astype(np.int16) - 128).astype(np.int8)
        return Quantized.of(packed, precision, dim=values.shape[1])
    return _to_bytes(values, precision, ranges, calibration)


def _refuse_unfinished(values: Array, precision: str) -> None:
    """Refuse vectors that a precision cannot hold."""
    kept = values.astype(np.float16 if precision == "float16" else np.float32, copy=False)
    if not np.isfinite(kept).all():
        row = int(np.flatnonzero(~np.isfinite(kept).all(axis=1))[0])
        instead = "take float32" if precision != "float32" else "leave it out, or scale it down"
        raise InputError(
            f"vector {row} holds NaN or infinity, or a number too large, and cannot become "
            f"{precision}; {instead}"
        )


def _to_bytes(values: Array, precision: str, ranges: Any, calibration: Any) -> Array:
    width = values.shape[1]
    if ranges is None:
        ranges = _ranges_from(values, precision, calibration)
    ranges = check_ranges(ranges, width)
    low, high = ranges
    steps = (high - low) / STEPS
    steps = np.where(steps == 0, np.ones_like(steps), steps)
    scaled = np.clip(np.floor((values - low) / steps), 0, STEPS)
    scaled = scaled if precision == "uint8" else scaled - 128
    return Quantized.of(scaled.astype(precision), precision, ranges=ranges)


def _ranges_from(values: Array, precision: str, calibration: Any) -> Array:
    """Return the ranges of calibration vectors, or of the vectors themselves."""
    width = values.shape[1]
    if calibration is None:
        if 0 < len(values) < FEWEST:
            raise InputError(
                f"{precision} needs the range of each dimension, which {len(values)} vectors "
                f"cannot tell; give ranges= (2, {width}), or calibration= (m, {width})"
            )
        return ranges_of(values) if len(values) else np.zeros((2, width), np.float32)
    source = np.asarray(calibration)
    if source.ndim != 2 or source.shape[1] != width or len(source) == 0:
        raise InputError(
            f"the calibration vectors have the shape {source.shape}; {precision} needs "
            f"(m, {width}) with m > 0 to find its ranges"
        )
    return ranges_of(source)
