"""Packed attention on CUDA by one kernel call over all sequences (torch.nn.attention.varlen).

A shared prefix is attended to apart: all own tokens meet it in one call, and the two softmaxes are
merged by the logs of their denominators, as on the CPU.

Shapes: H heads, K key-value heads, T tokens of the row, D width.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from embedlm.backbone.cpu_attention import How
from embedlm.backbone.layout import Layout
from embedlm.backbone.memory import put

__all__ = ["attend", "suits", "switch_off"]

log = logging.getLogger(__name__)
WIDEST = 256
"""Of a head, that the kernel takes."""
_off = False


def suits(query: Tensor, how: How) -> bool:
    """Tell whether the kernel can do it: half precision, no soft cap, no dropout."""
    if _off or query.device.type != "cuda" or how.softcap or how.dropout:
        return False
    half = query.dtype in (torch.float16, torch.bfloat16)
    return half and query.shape[-1] <= WIDEST and query.shape[-1] % 8 == 0


def switch_off(error: Exception) -> None:
    """Go on without the kernel, where this machine's does not run."""
    global _off
    _off = True
    log.warning("attention runs group by group, because varlen failed: %s", str(error)[:200])


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Layout, how: How) -> Tensor:
    """Attend within each sequence of a layout, after its prefix; out_1THD.

    Args:
        query: q_1HTD; without the prefix's rows where they are held.
        key: k_1KTD, with the prefix's rows.
        value: v_1KTD likewise.
        plan: the layout.
        how: direction, scale and window; with a prefix no window ends inside it.
    """
    q_THD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (query, key, value))
    lengths = plan.lengths
    if not plan.prefix:
        return _kernel(q_THD, k_TKD, v_TKD, lengths, lengths, how)[0][None]
    prefix, absent = plan.prefix, plan.absent
    own_THD = q_THD[prefix - absent :]
    before_THD, far_TH = _kernel(
        own_THD, k_TKD[:prefix], v_TKD[:prefix], (len(own_THD),), (prefix,), how, causal=False
    )
    inside_THD, near_TH = _kernel(own_THD, k_TKD[prefix:], v_TKD[prefix:], lengths, lengths, how)
    share_TH1 = torch.sigmoid(far_TH - near_TH)[..., None].to(inside_THD.dtype)
    out_THD = torch.lerp(inside_THD, before_THD, share_TH1)
    if not absent:
        one = (prefix,)
        lead, _ = _kernel(q_THD[:prefix], k_TKD[:prefix], v_TKD[:prefix], one, one, how)
        out_THD = torch.cat([lead, out_THD])
    return out_THD[None]


def _kernel(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    asking: tuple[int, ...],
    asked: tuple[int, ...],
    how: How,
    *,
    causal: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Return attention and the logs of its denominators, out_THD and lse_TH."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    causal = how.causal if causal is None else causal
    window = -1 if how.window is None else how.window
    # Counted inclusively in both directions, and with the token itself under a causal mask.
    sides = (window - 1 if window > 0 else -1, 0) if causal else (window, window)
    takes = _parameters(varlen_attn)
    # That of torch 2.11 takes heads that share keys without being told.
    grouped: Any = {"enable_gqa": q_THD.shape[1] != k_TKD.shape[1]} if "enable_gqa" in takes else {}
    outputs: Any = varlen_attn(
        q_THD.contiguous(),
        k_TKD.contiguous(),
        v_TKD.contiguous(),
        _starts(asking, q_THD.device),
        _starts(asked, q_THD.device),
        max(asking),
        max(asked),
        return_aux=AuxRequest(lse=True),
        scale=how.scale,
        window_size=sides,
        **grouped,
    )
    return outputs[0], outputs[1].mT


@lru_cache(maxsize=2)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of a function's parameters."""
    return frozenset(inspect.signature(function).parameters)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is made for vectors must serve a pass with gradients, too
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return where each sequence begins, and the end of the last; the same for all layers."""
    return put(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)
