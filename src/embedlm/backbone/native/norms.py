"""Norms by the root mean square, by the kernel in C.

Shapes: D width of a state.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from embedlm.backbone.native.compiled import library

__all__ = ["scaled", "suits"]

_LITTLE = 1 << 17
"""Numbers below which one thread is done before others have been woken."""


def suits(x: Tensor, weight_D: Tensor) -> bool:
    """Tell whether the kernel is there, and takes such states."""
    half = x.dtype == weight_D.dtype == torch.bfloat16
    return half and x.is_contiguous() and weight_D.is_contiguous() and library() is not None


def scaled(x: Tensor, weight_D: Tensor, epsilon: float, form: int) -> Tensor:
    """Return x over its root mean square, times the weight.

    Args:
        x: states in bfloat16, contiguous.
        weight_D: likewise.
        epsilon: is added to the mean square.
        form: 0: the weight multiplies what is rounded; 1: it is rounded last; 2: likewise, and the
            weight is counted from 1.
    """
    kernels = library()
    assert kernels is not None, "see `suits`"
    out = torch.empty_like(x)
    width = x.shape[-1]
    kernels.embedlm_norm(
        *(ctypes.c_void_p(one.data_ptr()) for one in (x, weight_D, out)),
        *(ctypes.c_int64(number) for number in (x.numel() // max(width, 1), width)),
        *(ctypes.c_float(epsilon), form),
        torch.get_num_threads() if x.numel() > _LITTLE else 1,
    )
    return out
