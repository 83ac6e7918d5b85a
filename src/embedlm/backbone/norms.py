"""RMSNorm by one kernel on an accelerator.

Networks write it as six steps, each of which reads and writes all states: a third of the time of a
pass on a card, where products are fast. Which norms are meant is measured on their own forward, not
read from their names. Under gradients and in compiled layers they run as they were written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["fuse"]

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_EXACT = 1e-5
"""The largest relative difference of equal results in float32."""


def fuse(network: nn.Module) -> int:
    """Have a network's RMSNorms run by one kernel each; return how many do."""
    kinds: dict[type, type | None] = {}
    found = 0
    for module in network.modules():
        base = type(module)
        if not _looks_like_one(module):
            continue
        if base not in kinds:
            kinds[base] = _one_kernel(base, module)
        fused = kinds[base]
        if fused is not None:
            module.__class__ = fused
            found += 1
    return found


def _looks_like_one(module: nn.Module) -> bool:
    """Tell whether a module has one vector and one small number, as an RMSNorm has."""
    weight = getattr(module, "weight", None)
    alone = isinstance(weight, nn.Parameter) and weight.ndim == 1
    return alone and len(list(module.parameters())) == 1 and _epsilon(module) is not None


def _epsilon(module: nn.Module) -> float | None:
    return next((vars(module)[name] for name in _EPSILONS if name in vars(module)), None)


def _one_kernel(base: type, module: Any) -> type | None:
    """Return the class that does what a norm does by one kernel; None where it does another thing.

    Its weight is multiplied as it is (Llama), or counts from 1 (Gemma).
    """
    wide = copy.deepcopy(module).float().eval()
    generator = torch.Generator().manual_seed(0)
    x_TD = 3 * torch.randn(5, len(wide.weight), generator=generator)
    # Weights are often all alike: those of the trial are not.
    weight_D = torch.rand(len(wide.weight), generator=generator)
    with torch.no_grad(), suppress(Exception):  # of a module that takes other things
        wide.weight.copy_(weight_D)
        x_TD = x_TD.to(wide.weight.device)
        expected_TD = wide(x_TD)
        own = module(x_TD.to(module.weight.dtype)).dtype
        for kind in (_plain, _from_one):
            error = (kind(wide, x_TD, _epsilon(wide)) - expected_TD).abs().max()
            if error <= _EXACT * expected_TD.abs().max() and own == module.weight.dtype:
                return _class_of(base, kind)
    return None


def _plain(norm: Any, x: Tensor, epsilon: float | None) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, epsilon)


def _from_one(norm: Any, x: Tensor, epsilon: float | None) -> Tensor:
    """Return the norm of float32 numbers, in which 1 + w is what it is."""
    weight_D = 1 + norm.weight.float()
    return F.rms_norm(x.float(), weight_D.shape, weight_D, epsilon).type_as(x)


@lru_cache(maxsize=64)
def _class_of(base: type, kind: Callable[..., Tensor]) -> type:
    """Return a subclass of a norm's class that runs by one kernel."""

    def forward(self: Any, x: Tensor, *more: Any, **others: Any) -> Tensor:
        plain = not more and not others and x.dtype == self.weight.dtype
        if not plain or torch.is_grad_enabled() or torch.compiler.is_compiling():
            result: Tensor = base.forward(self, x, *more, **others)  # type: ignore[attr-defined]
            return result
        return kind(self, x, _epsilon(self))

    def reduce(self: Any, _protocol: int) -> tuple[Any, ...]:
        """Copy it as it was written, which every machine and version can read."""
        return _as_written, (base,), dict(vars(self))

    members: dict[str, Any] = {"forward": forward, "__reduce_ex__": reduce}
    fused: type = type(base.__name__, (base,), members)
    return fused


def _as_written(base: type) -> Any:
    return object.__new__(base)
