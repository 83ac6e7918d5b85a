"""The factor of a loss whose gradients are computed in float16.

Most gradients of a network are smaller than the numbers that float16 can tell from 0. Multiplied by
a large factor they are not, and the sum is divided by it again in float32. A step whose gradients
become infinite is left out, and the factor is halved; after many steps without one it is doubled
(Micikevicius et al., arXiv:1710.03740).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from embedlm.training.checkpoint import StageProgress
from embedlm.training.fsdp import local_part

__all__ = ["adjusted", "loss_scale", "unscale"]

FIRST = 2.0**16
STEPS = 2000
"""Steps after which the factor is doubled."""


def loss_scale(progress: StageProgress, precision: str) -> float:
    """Return the factor of the next step; 1 in numbers of a wider range."""
    if precision != "float16":
        return 1.0
    if progress.loss_scale is None:
        progress.loss_scale = FIRST
    return progress.loss_scale


def unscale(parameters: Iterable[nn.Parameter], scale: float) -> None:
    """Divide the gradients by the factor of their loss, in place."""
    for parameter in parameters if scale != 1 else ():
        if parameter.grad is not None:
            local_part(parameter.grad).div_(scale)


def adjusted(progress: StageProgress, scale: float, *, finite: bool) -> bool:
    """Set the factor of the next step; tell whether this step counts.

    Args:
        progress: holds the factor.
        scale: of this step. At 1 nothing can be halved, and the step counts.
        finite: whether its gradients are finite.
    """
    if progress.loss_scale is None:
        return True
    if not finite and scale > 1:
        progress.loss_scale, progress.steps_at_scale = scale / 2, 0
        return False
    progress.steps_at_scale += 1
    if progress.steps_at_scale >= STEPS:
        progress.loss_scale, progress.steps_at_scale = scale * 2, 0
    return True
