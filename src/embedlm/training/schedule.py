"""Learning rates over the steps of a stage."""

from __future__ import annotations

import math

from embedlm.schema.tuning import Optimizer

__all__ = ["learning_rate", "warmup_steps"]


def warmup_steps(settings: Optimizer, steps: int) -> int:
    """Return the steps of the warm-up: as given if above 1, else that share of all."""
    given = settings.warmup
    return min(steps, int(given) if given > 1 else round(given * steps))


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """Return the rate of a step, counted from 0.

    It rises linearly to the rate of the settings, and then stays (constant), falls to 0 (linear) or
    along half a cosine.
    """
    warm = warmup_steps(settings, steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    if settings.schedule == "constant":
        return settings.learning_rate
    left = (steps - step) / max(1, steps - warm)
    factor = left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return settings.learning_rate * factor
