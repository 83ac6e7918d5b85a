"""Attention by matrix products, for a CPU whose bfloat16 units outrun its attention kernel.

PyTorch's flash kernel on the CPU reaches about a fifth of the machine's matrix-product rate at the
lengths of sentences and paragraphs. Here scores are a batched matrix product into a scratch buffer
that stays in the cache, their softmax is one fused pass where layers are compiled, and heads that
share keys are further rows of one product, so that no key is copied for each of them.

Shapes: B sequences, H heads, K key-value heads, G = H / K, L queries, T keys, D width of a head,
N = B * K, R = queries of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["How", "attend", "suits", "visible"]

BLOCK = 128
"""Queries of a block: what a causal mask hides of the keys after it is not computed."""
SCRATCH = 1 << 20
"""Scores held at once, about: 2 MB, so that they stay in the cache between the passes."""


@dataclass(frozen=True, slots=True)
class How:
    """What attention sees and how its scores are made."""

    causal: bool
    scale: float
    window: int | None = None
    """How many keys back a query sees."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap)."""
    dropout: float = 0.0
    fused: bool = False
    """Called from a compiled layer."""


@lru_cache(maxsize=1)
def _fast_products() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def suits(query: Tensor) -> bool:
    """Tell whether `attend` is the faster way for such queries; it has no gradient."""
    cheap = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return cheap and not torch.is_grad_enabled() and _fast_products()


def attend(
    q_BHLD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    how: How,
    out_BHLD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return attention and the log of its softmax's denominator, out_BHLD and lse_BHL1 (float32).

    Args:
        q_BHLD: queries; the last of them stands at the last of the keys.
        k_BKTD: keys.
        v_BKTD: values.
        how: mask, scale and whether the softmax runs compiled.
        out_BHLD: where to write, of any strides.
    """
    (count, heads, length, width), (kinds, total) = q_BHLD.shape, k_BKTD.shape[1:3]
    group = heads // kinds
    if out_BHLD is None:
        out_BHLD = v_BKTD.new_empty(count, heads, length, v_BKTD.shape[-1])
    out_BKGLD = out_BHLD.unflatten(1, (kinds, group))
    q_BKGLD = q_BHLD.reshape(count, kinds, group, length, width)
    k_BKDT = k_BKTD.contiguous().transpose(2, 3)
    v_BKTD = v_BKTD.contiguous()
    lse_BKGL1 = q_BHLD.new_empty((count, kinds, group, length, 1), dtype=torch.float32)
    weigh: Any = _compiled() if how.fused and how.softcap is None else _weigh
    rows = BLOCK if how.causal else max(BLOCK, SCRATCH // (group * total))
    scratch = q_BHLD.new_empty(max(SCRATCH, group * min(rows, length) * total))
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        end = total - length + stop if how.causal else total
        mask_RT = _hidden(start + total - length, stop - start, end, how.causal, how.window)
        for some in _chunks(count, kinds, SCRATCH // (group * (stop - start) * end)):
            here = (*some, slice(None), slice(start, stop))
            q_NRD = q_BKGLD[here].flatten(2, 3).flatten(0, 1)
            score_NRT = scratch[: q_NRD.shape[0] * q_NRD.shape[1] * end].view(len(q_NRD), -1, end)
            torch.bmm(q_NRD, k_BKDT[some][..., :end].flatten(0, 1), out=score_NRT)
            lse_MR1 = weigh(score_NRT.view(-1, stop - start, end), how.scale, how.softcap, mask_RT)
            found_NRD = torch.bmm(score_NRT, v_BKTD[some][:, :, :end].flatten(0, 1))
            shape = (*out_BKGLD[here].shape[:-1], -1)
            out_BKGLD[here] = found_NRD.view(shape)
            lse_BKGL1[here] = lse_MR1.view(shape)
    return out_BHLD, lse_BKGL1.flatten(1, 2)


def _chunks(count: int, kinds: int, size: int) -> list[tuple[slice, slice]]:
    """Return slices of sequences and key-value heads, of about `size` pairs of them."""
    if size >= kinds:
        step = size // kinds
        return [(slice(b, b + step), slice(None)) for b in range(0, count, step)]
    step = max(1, size)
    return [
        (slice(b, b + 1), slice(k, k + step)) for b in range(count) for k in range(0, kinds, step)
    ]


def _weigh(
    score_MRT: Tensor, scale: float, softcap: float | None, mask_RT: Tensor | None
) -> Tensor:
    """Turn scores into their softmax, in place; return the log of its denominator, lse_MR1."""
    score_MRT.mul_(scale)
    if softcap is not None:
        score_MRT.div_(softcap).tanh_().mul_(softcap)
    if mask_RT is not None:
        score_MRT.add_(mask_RT)
    most_MR1 = score_MRT.amax(-1, keepdim=True)
    score_MRT.sub_(most_MR1).exp_()
    sum_MR1 = score_MRT.sum(-1, keepdim=True, dtype=torch.float32)
    score_MRT.mul_(sum_MR1.reciprocal().to(score_MRT.dtype))
    return most_MR1.float() + sum_MR1.log()


def _weigh_fused(
    score_MRT: Tensor, scale: float, softcap: float | None, mask_RT: Tensor | None
) -> Tensor:
    """Do what `_weigh` does in float32 between one reading and one writing of the scores."""
    x_MRT = score_MRT.float() * scale
    if mask_RT is not None:
        x_MRT = x_MRT + mask_RT
    most_MR1 = x_MRT.amax(-1, keepdim=True)
    e_MRT = (x_MRT - most_MR1).exp()
    sum_MR1 = e_MRT.sum(-1, keepdim=True)
    score_MRT.copy_(e_MRT / sum_MR1)
    return most_MR1 + sum_MR1.log()


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """Return the softmax compiled for any shape."""
    made = torch.compile(_weigh_fused, dynamic=True)
    # What is compiled is tuned to the sizes seen first, and kept on disk: let them be usual ones.
    score_MRT, mask_RT = torch.zeros(16, 128, 384).bfloat16(), torch.zeros(128, 384).bfloat16()
    for mask in (mask_RT, None):
        for scale in (0.1, 0.2):
            made(score_MRT, scale, None, mask)
    return made


@lru_cache(maxsize=64)
def _hidden(first: int, rows: int, total: int, causal: bool, window: int | None) -> Tensor | None:
    """Return what is added to the scores of `rows` queries from position `first`; None: nothing."""
    if (not causal or rows == 1) and (window is None or total <= window):
        return None
    seen_RT = visible(first, rows, total, causal, window)
    return torch.zeros(seen_RT.shape, dtype=torch.bfloat16).masked_fill_(~seen_RT, -math.inf)


def visible(
    first: int, rows: int, total: int, causal: bool, window: int | None, device: Any = None
) -> Tensor:
    """Return which of `total` keys each of `rows` queries from position `first` may see."""
    query_R1 = torch.arange(first, first + rows, device=device)[:, None]
    key_1T = torch.arange(total, device=device)[None, :]
    allowed_RT = torch.ones(rows, total, dtype=torch.bool, device=device)
    if causal:
        allowed_RT &= key_1T <= query_R1
        if window is not None:
            allowed_RT &= key_1T > query_R1 - window
    elif window is not None:
        # transformers counts the window inclusively once attention is bidirectional.
        allowed_RT &= (key_1T - query_R1).abs() <= window
    return allowed_RT
