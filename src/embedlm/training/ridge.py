"""A projection started in closed form: ridge regression from pooled states to a teacher's vectors.

    W, b = argmin sum_i |y_i - W x_i - b|^2 + n lambda |W|^2
    W^T = (Sxx + lambda I)^-1 Sxy,  b = mean(y) - W mean(x)

x is a text's pooled state before it is normalised, y the teacher's vector, S the centred second
moments (Hoerl and Kennard, Technometrics 12 (1970)). The texts are read once in blocks: only
moments in float64 are kept, so that memory does not grow with their number. lambda is a share of
the states' mean variance, chosen from a few by the error on texts held out; the weights are then
those of all texts.

Shapes: B texts of a block, I width of a state, O width of the teacher's vectors.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, NotFiniteError

__all__ = ["Moments", "Solution", "is_held_out", "solve"]

Doubles = npt.NDArray[np.float64]
_FIELDS = ("count", "x", "y", "xx", "xy", "yy")


@dataclass(slots=True)
class Moments:
    """Sums over texts, of which everything else follows."""

    count: Doubles
    x: Doubles
    y: Doubles
    xx: Doubles
    xy: Doubles
    yy: Doubles

    @classmethod
    def zero(cls, into: int, out: int) -> Moments:
        """Return the sums over no text."""
        shapes: tuple[Any, ...] = ((), into, out, (into, into), (into, out), ())
        return cls(*(np.zeros(shape) for shape in shapes))

    def add(self, x_BI: npt.NDArray[np.float32], y_BO: npt.NDArray[np.float32]) -> None:
        """Add the texts of a block.

        Raises:
            NotFiniteError: NaN or infinity in either.
        """
        if not (np.isfinite(x_BI).all() and np.isfinite(y_BO).all()):
            raise NotFiniteError("pooled states or teacher's vectors hold NaN or infinity")
        x, y = x_BI.astype(np.float64), y_BO.astype(np.float64)
        self.count = self.count + len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy = self.yy + np.square(y).sum()

    def plus(self, other: Moments) -> Moments:
        """Return the sums over the texts of both."""
        return Moments(*(getattr(self, name) + getattr(other, name) for name in _FIELDS))

    def arrays(self, prefix: str) -> dict[str, Doubles]:
        """Return the sums by name, to write them."""
        return {f"{prefix}{name}": np.asarray(getattr(self, name)) for name in _FIELDS}

    @classmethod
    def of_arrays(cls, arrays: Any, prefix: str) -> Moments:
        """Return the sums that `arrays` gave."""
        return cls(*(arrays[f"{prefix}{name}"] for name in _FIELDS))

    def error(self, weight_IO: Doubles, bias_O: Doubles) -> float:
        """Return sum_i |y_i - W x_i - b|^2."""
        w, b = weight_IO, bias_O
        squares = np.sum((self.xx @ w) * w) + self.yy + self.count * (b @ b)
        return float(squares - 2 * np.sum(self.xy * w) + 2 * (self.x @ w) @ b - 2 * self.y @ b)

    def spread(self) -> float:
        """Return sum_i |y_i - mean(y)|^2."""
        return float(self.yy - self.y @ self.y / self.count)


@dataclass(frozen=True, slots=True)
class Solution:
    """A projection, and how it was found."""

    weight_IO: Doubles
    bias_O: Doubles | None
    strength: float
    """lambda, as a share of the states' mean variance."""
    explained: float
    """Share of the teacher's variance that it explains on the texts held out (R^2)."""


def is_held_out(text: str, share: float) -> bool:
    """Tell whether a text is held out; its content alone decides."""
    return zlib.crc32(text.encode("utf-8")) % 10_000 < share * 10_000


def solve(
    fitted: Moments, held_out: Moments, strengths: tuple[float, ...], *, bias: bool
) -> Solution:
    """Return the best projection for the held-out texts, fitted anew on all.

    Args:
        fitted: sums over the texts that are learnt from.
        held_out: sums over those that choose the strength.
        strengths: that are tried.
        bias: whether there is a b; else x and y are not centred.

    Raises:
        InputError: too few texts, or texts whose states or vectors are all the same.
    """
    for name, moments in (("learn from", fitted), ("hold out", held_out)):
        if moments.count < 2:
            raise InputError(
                f"ridge: there are {int(moments.count)} texts to {name}; give more texts"
            )
    every = fitted.plus(held_out)
    if every.spread() <= 1e-12 * max(float(every.yy), 1e-300):
        raise InputError("ridge: the teacher's vectors of all texts are the same; give other texts")
    errors = [held_out.error(*_fit(fitted, one, bias=bias)) for one in strengths]
    best = int(np.argmin(errors))
    weight_IO, bias_O = _fit(every, strengths[best], bias=bias)
    explained = 1 - errors[best] / max(held_out.spread(), 1e-300)
    return Solution(weight_IO, bias_O if bias else None, strengths[best], explained)


def _fit(moments: Moments, strength: float, *, bias: bool) -> tuple[Doubles, Doubles]:
    """Return W^T and b."""
    n = moments.count
    xx, xy = moments.xx / n, moments.xy / n
    if bias:
        xx = xx - np.outer(moments.x, moments.x) / n**2
        xy = xy - np.outer(moments.x, moments.y) / n**2
    scale = float(np.trace(xx)) / len(xx)
    if not scale > 0:
        raise InputError("ridge: the pooled states of all texts are the same; give other texts")
    solved = np.linalg.solve(xx + strength * scale * np.eye(len(xx)), xy)
    weight_IO = np.asarray(solved, np.float64)
    bias_O = (moments.y - moments.x @ weight_IO) / n if bias else np.zeros(len(moments.y))
    return weight_IO, bias_O
