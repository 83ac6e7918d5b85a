"""Norms by the root mean square, in fewer passes over the states than networks' own take.

On a CPU there are fewer of them, on a card one: the six of a network take a third of a card's time,
on which products are fast. What a network's norm computes is found at load by trying it, not by its
name: on random weights and states it must give what one of the forms below gives. It keeps its
class, of which it becomes a subclass, and its weight; in training, with gradients, compiled, or on
another device its own code runs.

Shapes: D width of a state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from embedlm.backbone.native import norms as kernel

__all__ = ["quicken"]

Form: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]

_EPSILONS = ("variance_epsilon", "eps")
"""Names of what is added to the mean square."""
_CLOSE = {torch.float32: 1e-6, torch.bfloat16: 2e-4, torch.float16: 2e-4}
"""How far forms may be from a norm, relative to what it gives: one rounding more is ten times so
far. Sums in another order turn the last bit of a number in ten thousand."""


def _scaled(x: Tensor, epsilon: float) -> Tensor:
    """Return x over its root mean square, in float32 and in memory of its own."""
    wide = x.float()
    factor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    factor.div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return wide * factor if wide is x else wide.mul_(factor)


def _rounded_first(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Llama's, and most: the weight multiplies what is rounded."""
    return _scaled(x, epsilon).to(x.dtype).mul_(weight_D)


def _rounded_last(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """OLMo 2's."""
    return _scaled(x, epsilon).mul_(weight_D.float()).to(x.dtype)


def _around_one(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Gemma's: the weight is counted from 1."""
    return _scaled(x, epsilon).mul_(1.0 + weight_D.float()).to(x.dtype)


_FORMS: tuple[Form, ...] = (_rounded_first, _rounded_last, _around_one)


def _by_kernel(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Round once, at the end."""
    return F.rms_norm(x, weight_D.shape, weight_D, epsilon)


def _around_one_by_kernel(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Count the weight from 1 in float32, in which that is exact."""
    return _by_kernel(x.float(), 1.0 + weight_D.float(), epsilon).to(x.dtype)


_ON_CARD: dict[Form, Form] = {
    _rounded_first: _by_kernel,
    _rounded_last: _by_kernel,
    _around_one: _around_one_by_kernel,
}
"""What gives a form's numbers on a card."""
_DEVICES = ("cpu", "cuda")


def _run(form: Form, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Return a form's numbers by the fastest way that the machine has."""
    if x.device.type != "cpu":
        return _ON_CARD[form](x, weight_D, epsilon)
    if kernel.suits(x, weight_D):
        return kernel.scaled(x, weight_D, epsilon, _FORMS.index(form))
    return form(x, weight_D, epsilon)


class _Quick(nn.Module):
    """Stands before a network's class of norms, and runs a form of it where that is faster."""

    quick_form: Form
    quick_kind: type[nn.Module]
    """The network's class."""
    quick_dtype: torch.dtype
    """What the form was proven in."""
    weight: nn.Parameter

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the norm of x times the weight."""
        other = args or kwargs or self.training or x.dtype != self.quick_dtype
        if other or not _suits(x, self.weight):
            return super().forward(x, *args, **kwargs)
        return _run(self.quick_form, x, self.weight, _epsilon(self))  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by the network's class: this one has no place of its own."""
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _restored, (self.quick_kind, self.quick_form, self.quick_dtype), state


def _suits(x: Tensor, weight_D: Tensor) -> bool:
    """Tell whether a form may run."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    alike = x.dtype == weight_D.dtype and x.device == weight_D.device
    known = alike and x.device.type in _DEVICES
    return known and not torch.is_autocast_enabled(x.device.type)


@cache
def _quick(kind: type[nn.Module], form: Form, dtype: torch.dtype) -> type[_Quick]:
    """Return a class of norms that runs a form, and otherwise is the network's."""
    fields: dict[str, Any] = {
        name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")
    }
    fields |= {"quick_kind": kind, "quick_form": staticmethod(form), "quick_dtype": dtype}
    return type(kind.__name__, (_Quick, kind), fields)


def _restored(kind: type[nn.Module], form: Form, dtype: torch.dtype) -> nn.Module:
    """Return a norm without its state."""
    quick = _quick(kind, form, dtype)  # type: ignore[arg-type]  # classes are hashable
    return quick.__new__(quick)


def _epsilon(norm: nn.Module) -> float | None:
    return next((getattr(norm, name) for name in _EPSILONS if hasattr(norm, name)), None)


def _weight_of(norm: nn.Module) -> Tensor | None:
    """Return the weight of what may be a norm that a form replaces; None: it is none."""
    weight_D = norm._parameters.get("weight")
    if isinstance(norm, _Quick) or norm._modules or norm._buffers or len(norm._parameters) != 1:
        return None
    if weight_D is None or weight_D.dim() != 1 or weight_D.dtype not in _CLOSE:
        return None
    known = weight_D.device.type in _DEVICES and isinstance(_epsilon(norm), float)
    return weight_D if known else None


def _form_of(norm: nn.Module) -> Form | None:
    """Return the form that gives what a norm gives; None: there is none, or it is no such norm.

    It is tried on the CPU, wherever the norm is.
    """
    weight_D, epsilon = _weight_of(norm), _epsilon(norm)
    if weight_D is None or epsilon is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x_15D = torch.randn(1, 5, len(weight_D), generator=generator).to(weight_D.dtype)
    tried_D, x_14D = x_15D[0, 0].clone(), x_15D[:, 1:]
    x_14D *= torch.tensor([1e-3, 0.1, 1.0, 30.0])[:, None]  # epsilon shows in the first
    twin = copy.copy(norm)  # not the norm itself: others may be running it
    twin._parameters = {"weight": nn.Parameter(tried_D, requires_grad=False)}
    try:
        wanted = twin.forward(x_14D)
    except Exception:  # it takes something else
        return None
    if not isinstance(wanted, Tensor) or wanted.dtype != x_14D.dtype or wanted.shape != x_14D.shape:
        return None
    x_14D = x_14D.contiguous()
    forms = (form for form in _FORMS if _equal(form(x_14D, tried_D, epsilon), wanted))
    return next((f for f in forms if _equal(_run(f, x_14D, tried_D, epsilon), wanted)), None)


def _equal(found: Tensor, wanted: Tensor) -> bool:
    error = (found.float() - wanted.float()).norm(dim=-1)
    return bool((error <= _CLOSE[found.dtype] * wanted.float().norm(dim=-1)).all())


@torch.no_grad()
def quicken(network: nn.Module) -> None:
    """Have a network's norms run in fewer passes, where that is proven to be the same."""
    for norm in list(network.modules()):
        form = _form_of(norm)
        if form is not None:
            norm.__class__ = _quick(type(norm), form, norm.weight.dtype)  # type: ignore[arg-type]
