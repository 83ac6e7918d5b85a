"""The learning-rate schedule of a stage."""

from __future__ import annotations

import math

from embedlm.schema.tuning import Optimizer

__all__ = ["learning_rate", "warmup_steps"]


def warmup_steps(settings: Optimizer, steps: int) -> int:
    """Return the number of warm-up steps: `warmup` if above 1, else that share of all steps."""
    warmup = settings.warmup
    return min(steps, int(warmup) if warmup > 1 else round(warmup * steps))


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises linearly to the configured rate. Then it stays there (constant), falls linearly to 0
    (linear), or falls to 0 along half a cosine (cosine).
    """
    warm = warmup_steps(settings, steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    if settings.schedule == "constant":
        return settings.learning_rate
    left = (steps - step) / max(1, steps - warm)
    factor = left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return settings.learning_rate * factor
