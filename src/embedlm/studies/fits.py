"""Power laws of a loss over size or data: L(x) = c * x^-a + d, fitted here and never quoted.

Shapes: P points, R resamples, G places on the axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError

__all__ = ["PowerLaw", "fit_power_law", "power_law"]

Floats = npt.NDArray[np.float64]
FEWEST = 3
_FLOORS = np.concatenate([[0.0], np.linspace(0.02, 0.98, 49)])
"""Values of d that are tried, as shares of the smallest loss."""
_DRAWN = 400
_PLACES = 40


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law with its band."""

    factor: str
    task: str
    x_is: str
    """level or parameters."""
    loss: str
    """What is fitted: contrastive entropy, or 1 - a metric."""
    x: list[float]
    y: list[float]
    c: float
    exponent: float
    exponent_interval: tuple[float, float]
    floor: float
    """d, the loss that is left however large x is; 0 with fewer than 4 points."""
    r2: float
    """Of log(L - d)."""
    places: list[float]
    low: list[float]
    middle: list[float]
    high: list[float]


def power_law(x_P: npt.ArrayLike, y_P: npt.ArrayLike) -> tuple[float, float, float]:
    """Return c, a and d of y = c * x^-a + d.

    For each d of a grid, c and a are the line of least squares through log x and log(y - d); the d
    with the least squared error of log y is taken. With 3 points or fewer d is 0.

    Args:
        x_P: above 0.
        y_P: above 0.
    """
    x, y = np.asarray(x_P, dtype=np.float64), np.asarray(y_P, dtype=np.float64)
    floors = _FLOORS * y.min() if len(x) > FEWEST else np.zeros(1)
    log_x = np.log(x) - np.log(x).mean()
    best, least = (0.0, 0.0, 0.0), np.inf
    for floor in floors:
        log_y = np.log(y - floor)
        slope = float(log_x @ (log_y - log_y.mean()) / (log_x @ log_x))
        c = float(np.exp(log_y.mean() - slope * np.log(x).mean()))
        error = float(((np.log(c * x**slope + floor) - np.log(y)) ** 2).sum())
        if error < least - 1e-12:
            best, least = (c, -slope, float(floor)), error
    return best


def fit_power_law(
    x: Sequence[float],
    y: Sequence[float],
    drawn: Sequence[Floats],
    *,
    factor: str,
    task: str,
    x_is: str,
    loss: str,
) -> PowerLaw:
    """Return the law through points, with the band of the same resamples of units for all points.

    Args:
        x: sizes or amounts.
        y: a loss for each.
        drawn: (R,) resamples of each loss.
        factor: that x is of.
        task: that y is of.
        x_is: level or parameters.
        loss: what y is.

    Raises:
        InputError: fewer than 3 different sizes, or a loss that is not above 0.
    """
    if len(set(x)) < FEWEST or min(y) <= 0:
        raise InputError(
            f"a power law over {factor!r} needs {FEWEST} levels whose names (or x) are numbers "
            f"above 0, and losses above 0; there are {len(set(x))} levels"
        )
    c, exponent, floor = power_law(x, y)
    places = np.geomspace(min(x), max(x) * 2, _PLACES)
    draws_RP = np.maximum(np.stack(drawn, axis=1)[:_DRAWN], 1e-9)
    laws = [power_law(x, draw) for draw in draws_RP]
    curves_RG = np.stack([k * places**-a + d for k, a, d in laws])
    low_G, high_G = np.quantile(curves_RG, [0.025, 0.975], axis=0)
    ends = np.quantile([a for _, a, _ in laws], [0.025, 0.975])
    xs, ys = np.asarray(x), np.asarray(y)
    log_y, fitted = np.log(ys - floor), np.log(c * xs**-exponent)
    total = float(((log_y - log_y.mean()) ** 2).sum())
    return PowerLaw(
        factor,
        task,
        x_is,
        loss,
        list(x),
        list(y),
        c,
        exponent,
        (float(ends[0]), float(ends[1])),
        floor,
        1 - float(((log_y - fitted) ** 2).sum()) / total if total > 0 else 1.0,
        places.tolist(),
        low_G.tolist(),
        (c * places**-exponent + floor).tolist(),
        high_G.tolist(),
    )
