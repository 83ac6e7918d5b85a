"""Which device a model runs on, and in which numbers."""

from __future__ import annotations

from typing import Any

import torch

from embedlm.errors import ModelError, closest

__all__ = ["bfloat16_is_fast", "choose_device", "choose_dtype"]

_DEVICES = ("cpu", "cuda", "mps")
_ALSO = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "metal": "mps",
    "fp32": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
}
"""What others call a device or a number format."""
_HALF = (torch.float16, torch.bfloat16)


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, or the best there is."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).cpu()  # "meta" holds no values
    except (RuntimeError, AssertionError) as error:
        kind = str(device).partition(":")[0]
        if kind not in _DEVICES:
            hint = closest(_ALSO.get(kind, kind), list(_DEVICES))
            raise ModelError(
                f"device {str(device)!r} is not known; allowed: cpu, cuda, cuda:1 or mps.{hint}"
            ) from error
        raise ModelError(
            f"device {str(device)!r} cannot be used: {error}; leave it out for the fastest one here"
        ) from error
    return chosen


def bfloat16_is_fast(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return any(
            bool(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)())
            for name in ("avx512_bf16", "amx_tile", "arm_bf16")
        )
    return True


def choose_dtype(dtype: str | torch.dtype, stored: Any, device: torch.device) -> torch.dtype:
    """Return the dtype to run in.

    Args:
        dtype: what is asked for.
        stored: the numbers of the checkpoint, as a dtype or its name; None: not known.
        device: that it runs on.

    `auto` keeps a float32 checkpoint in float32, so that its vectors equal the reference's, and
    runs a half-precision one in bfloat16 where the hardware has it fast, else in float32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if isinstance(stored, str):
            stored = getattr(torch, stored, None)
        if stored not in _HALF:
            return torch.float32
        if device.type == "cuda" and stored == torch.float16:
            return torch.float16
        return torch.bfloat16 if bfloat16_is_fast(device) else torch.float32
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in allowed:
        names = ["auto", *allowed, "int8", "fp8"]
        hint = closest(_ALSO.get(dtype, dtype), names)
        raise ModelError(f"dtype {dtype!r} is not known; allowed: {', '.join(names)}.{hint}")
    return allowed[dtype]
