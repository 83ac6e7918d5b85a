"""The one seam to attention kernels.

Sequences of a pack lie in one row without padding; a `Layout` says where each begins. The function
registered here with transformers serves every architecture that goes through its attention
interface. Under a causal mask the row may begin with a prefix shared by all its sequences: its keys
and values are computed once, and each sequence attends to them and to itself.

Shapes: B sequences of a group, H heads, K key-value heads, T tokens of the row, L tokens of a
sequence, P tokens of the prefix, D width of a head.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AttentionInterface

__all__ = ["NAME", "Layout", "layout"]

NAME = "embedlm_packed"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the sequences of a packed row lie."""

    lengths: tuple[int, ...]
    """Own tokens of each sequence, in row order; equal lengths stand together."""
    causal: bool
    prefix: int = 0
    """Tokens of the shared prefix at the row's start."""

    def groups(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first token, sequences, length) of each run of equal lengths."""
        start, index = self.prefix, 0
        while index < len(self.lengths):
            length = self.lengths[index]
            end = index
            while end < len(self.lengths) and self.lengths[end] == length:
                end += 1
            yield start, end - index, length
            start += (end - index) * length
            index = end


class _Current(threading.local):
    layout: Layout | None = None


_current = _Current()


@contextmanager
def layout(value: Layout) -> Iterator[None]:
    """Say what the rows that are run inside look like."""
    before = _current.layout
    _current.layout = value
    try:
        yield
    finally:
        _current.layout = before


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of the current layout (signature of transformers)."""
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases are not packed")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if torch.compiler.is_compiling():
        window = -1 if sliding_window is None else int(sliding_window)
        return _opaque(query, key, value, scale, window, float(softcap or 0)), None
    return _packed(query, key, value, scale, sliding_window, softcap, dropout), None


@torch.library.custom_op("embedlm::packed_attention", mutates_args=())
def _opaque(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    """Attend as one opaque step of a compiled layer: the layout is no part of the graph."""
    wide = None if window < 0 else window
    return _packed(query, key, value, scale, wide, softcap or None, 0.0).contiguous()


@_opaque.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[-1])


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    plan = _current.layout
    if plan is None or query.shape[0] != 1:
        raise RuntimeError("packed attention runs one packed row inside `layout(...)`")
    how = _How(plan.causal, scale, window, softcap, dropout)
    if not plan.prefix:
        return _joined([_own(group, query, key, value, how) for group in plan.groups()])
    one = slice(0, plan.prefix)
    first = _attend(query[:, :, one], key[:, :, one], value[:, :, one], how)[0]
    longest = plan.prefix + max(plan.lengths)
    merged = query.device.type == "cpu" and not softcap and not dropout
    if merged and (window is None or longest <= window) and not torch.is_grad_enabled():
        return _joined([first, _merged(plan, query, key, value, how)])
    shared = (key[:, :, one], value[:, :, one])
    return _joined(
        [first, *(_own(group, query, key, value, how, shared) for group in plan.groups())]
    )


def _joined(parts_HTD: list[Tensor]) -> Tensor:
    """Return the parts of a row one after the other, out_1THD."""
    out_HTD = parts_HTD[0] if len(parts_HTD) == 1 else torch.cat(parts_HTD, dim=1)
    return out_HTD.transpose(0, 1).unsqueeze(0)


def _own(
    group: tuple[int, int, int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    how: _How,
    shared: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend within the sequences of a group, after the shared keys and values; out_HTD."""
    start, count, length = group
    rows = slice(start, start + count * length)
    q_BHLD, k_BKLD, v_BKLD = (_split(x[0][:, rows], count) for x in (query, key, value))
    if shared is not None:
        k_BKLD, v_BKLD = _after(shared[0], k_BKLD), _after(shared[1], v_BKLD)
    out_BHLD = _attend(q_BHLD, k_BKLD, v_BKLD, how)
    return out_BHLD.transpose(0, 1).reshape(query.shape[1], count * length, -1)


def _merged(plan: Layout, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
    """Attend to the prefix and to each own sequence apart, and merge the two softmaxes; out_HTD.

    softmax over a and b = w softmax(a) + (1 - w) softmax(b), w = sigmoid(lse(a) - lse(b)). All own
    tokens meet the prefix in one product, without a copy of it for each sequence or a mask.
    """
    prefix, heads, kinds = plan.prefix, query.shape[1], key.shape[1]
    own_HTD = query[0][:, prefix:]
    # Heads that share keys become further queries of one head.
    folded = own_HTD.reshape(1, kinds, heads // kinds * own_HTD.shape[1], -1)
    before, lse_before = _flash(folded, key[:, :, :prefix], value[:, :, :prefix], False, how)
    before_HTD = before.reshape(own_HTD.shape)
    lse_before_HT = lse_before.reshape(own_HTD.shape[:2])
    parts, sums = [], []
    for start, count, length in plan.groups():
        rows = slice(start, start + count * length)
        q_BHLD, k_BKLD, v_BKLD = (_split(x[0][:, rows], count) for x in (query, key, value))
        k_BHLD, v_BHLD = (x.repeat_interleave(heads // kinds, 1) for x in (k_BKLD, v_BKLD))
        out_BHLD, lse_BHL = _flash(q_BHLD, k_BHLD, v_BHLD, True, how)
        parts.append(out_BHLD.transpose(0, 1).reshape(heads, count * length, -1))
        sums.append(lse_BHL.transpose(0, 1).reshape(heads, count * length))
    within_HTD, lse_within_HT = torch.cat(parts, dim=1), torch.cat(sums, dim=1)
    share_HT1 = torch.sigmoid(lse_before_HT - lse_within_HT).unsqueeze(-1).to(query.dtype)
    return torch.lerp(within_HTD, before_HTD, share_HT1)


def _flash(
    q_BHLD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, causal: bool, how: _How
) -> tuple[Tensor, Tensor]:
    """Return attention and the log of its softmax's denominator, out_BHLD and lse_BHL."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHLD, k_BHTD, v_BHTD, 0.0, causal, scale=how.scale
    )
    return out, lse


def _split(x_HTD: Tensor, count: int) -> Tensor:
    heads, tokens, width = x_HTD.shape
    return x_HTD.reshape(heads, count, tokens // count, width).transpose(0, 1)


def _after(prefix_1KPD: Tensor, x_BKLD: Tensor) -> Tensor:
    return torch.cat([prefix_1KPD.expand(len(x_BKLD), -1, -1, -1), x_BKLD], dim=2)


@dataclass(frozen=True, slots=True)
class _How:
    causal: bool
    scale: float
    window: int | None
    softcap: float | None
    dropout: float


def _attend(q_BHLD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, how: _How) -> Tensor:
    """Attend from the last L of T positions, each seeing what the mask allows."""
    length, total = q_BHLD.shape[2], k_BKTD.shape[2]
    windowed = how.window is not None and total > how.window
    mask_LT = None
    if windowed or (how.causal and 1 < length < total):
        mask_LT = _mask(length, total, how, q_BHLD.device)
    if how.softcap:
        return _attend_softcapped(q_BHLD, k_BKTD, v_BKTD, mask_LT, how)
    return F.scaled_dot_product_attention(
        q_BHLD,
        k_BKTD,
        v_BKTD,
        attn_mask=mask_LT,
        dropout_p=how.dropout,
        is_causal=how.causal and mask_LT is None and length == total and length > 1,
        scale=how.scale,
        enable_gqa=q_BHLD.shape[1] != k_BKTD.shape[1],
    )


def _mask(length: int, total: int, how: _How, device: torch.device) -> Tensor:
    """Return which of T keys each of the last L positions may see."""
    query_L1 = torch.arange(total - length, total, device=device)[:, None]
    key_1T = torch.arange(total, device=device)[None, :]
    allowed_LT = torch.ones(length, total, dtype=torch.bool, device=device)
    if how.causal:
        allowed_LT &= key_1T <= query_L1
        if how.window is not None:
            allowed_LT &= key_1T > query_L1 - how.window
    elif how.window is not None:
        # transformers counts the window inclusively once attention is bidirectional.
        allowed_LT &= (key_1T - query_L1).abs() <= how.window
    return allowed_LT


def _attend_softcapped(
    q_BHLD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask_LT: Tensor | None, how: _How
) -> Tensor:
    """Attend with soft-capped scores c * tanh(s / c) (Gemma 2)."""
    assert how.softcap is not None
    repeat = q_BHLD.shape[1] // k_BKTD.shape[1]
    k_BHTD, v_BHTD = k_BKTD.repeat_interleave(repeat, 1), v_BKTD.repeat_interleave(repeat, 1)
    scores_BHLT = (q_BHLD @ k_BHTD.transpose(2, 3)) * how.scale
    scores_BHLT = torch.tanh(scores_BHLT / how.softcap) * how.softcap
    if mask_LT is None and how.causal and q_BHLD.shape[2] > 1:
        mask_LT = _mask(q_BHLD.shape[2], k_BKTD.shape[2], how, q_BHLD.device)
    if mask_LT is not None:
        scores_BHLT = scores_BHLT.masked_fill(~mask_LT, -math.inf)
    weights_BHLT = F.softmax(scores_BHLT.float(), dim=-1).to(q_BHLD.dtype)
    return F.dropout(weights_BHLT, how.dropout, training=how.dropout > 0) @ v_BHTD


AttentionInterface.register(NAME, packed_attention)
