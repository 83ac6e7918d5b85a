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
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AttentionInterface

from embedlm.backbone import cpu_attention, varlen
from embedlm.backbone.cpu_attention import How
from embedlm.backbone.layout import Layout, current, current_kept

__all__ = ["NAME", "packed_attention"]

NAME = "embedlm_packed"


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
    sliding_window = _radius(module, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if torch.compiler.is_compiling():
        window = -1 if sliding_window is None else int(sliding_window)
        return _opaque(query, key, value, scale, window, float(softcap or 0)), None
    how = How(_now().causal, scale, sliding_window, softcap or None, dropout)
    return _packed(query, key, value, how), None


def _radius(module: torch.nn.Module, window: int | None) -> int | None:
    """Return the window as the mask counts it.

    Encoders (ModernBERT) tell attention one more than their config says, for kernels that count
    the token itself; their mask does not.
    """
    configured = getattr(getattr(module, "config", None), "sliding_window", None)
    return configured if window is not None and window - 1 == configured else window


@torch.library.custom_op("embedlm::packed_attention", mutates_args=())
def _opaque(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    """Attend as one opaque step of a compiled layer: the layout is no part of the graph."""
    how = How(_now().causal, scale, None if window < 0 else window, softcap or None)
    return _packed(query, key, value, how).contiguous()


@_opaque.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
) -> Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[-1])


def _now() -> Layout:
    now = current()
    if now is None:
        raise RuntimeError("packed attention runs inside `layout(...)`")
    return now


def _packed(query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """Attend within each sequence of the current layout; out_1THD."""
    plan = _now()
    if query.shape[0] != 1:
        raise RuntimeError("packed attention runs one packed row")
    if query.dtype != value.dtype:  # rotary positions are float32 under autocast
        query, key = query.to(value.dtype), key.to(value.dtype)
    kept = current_kept()
    if kept is not None:
        key, value = kept.join(key, value)
    at_once = _at_once(query, key, value, plan, how)
    if at_once is not None:
        return at_once
    if torch.is_grad_enabled():
        recorded_HTD = _recorded(query, key, value, plan, how)
        # Some networks (AFMoE) view the heads as one, which a transposed tensor does not allow.
        return recorded_HTD.transpose(0, 1).contiguous().unsqueeze(0)
    # Each part writes its rows where they belong.
    _, heads, tokens, _ = query.shape
    out_HTD = value.new_empty(tokens, heads, value.shape[-1]).transpose(0, 1)
    shared = None
    if plan.prefix:
        one = slice(0, plan.prefix)
        shared = (key[:, :, one], value[:, :, one])
        if not plan.held:
            _own((0, 1, plan.prefix), query, key, value, how, None, out_HTD)
    if shared is not None and _mergeable(plan, query, how):
        _merged(plan, query, key, value, how, out_HTD)
    else:
        for group in plan.groups():
            _own(group, query, key, value, how, shared, out_HTD, plan.absent)
    return out_HTD.transpose(0, 1).unsqueeze(0)


def _at_once(query: Tensor, key: Tensor, value: Tensor, plan: Layout, how: How) -> Tensor | None:
    """Attend to all sequences at once, where the device has a fast way that does."""
    if cpu_attention.suits(query) and not how.dropout:
        return cpu_attention.attend_packed(query, key, value, plan, how)
    if not varlen.suits(query, how) or (plan.prefix and not _unwindowed(plan, how)):
        return None
    try:
        return varlen.attend(query, key, value, plan, how)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, TypeError) as error:
        varlen.switch_off(error)
        return None


def _recorded(query: Tensor, key: Tensor, value: Tensor, plan: Layout, how: How) -> Tensor:
    """Attend with a graph for gradients; out_HTD.

    The rows are split once, so that their gradients are joined once: a slice a group would fill a
    tensor of the whole pack with zeros for each.
    """
    groups = list(plan.groups())
    sizes = [count * length for _, count, length in groups]
    if plan.prefix:
        sizes, groups = [plan.prefix, *sizes], [(0, 1, plan.prefix), *groups]
    parts_HTD = []
    shared = None
    rows = zip(*(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True)
    for (start, count, length), parts in zip(groups, rows, strict=True):
        q_BHLD, k_BKLD, v_BKLD = (_split(x_HTD, count) for x_HTD in parts)
        if plan.prefix and start == 0:
            shared = k_BKLD, v_BKLD
        elif shared is not None:
            k_BKLD, v_BKLD = _after(shared[0], k_BKLD), _after(shared[1], v_BKLD)
        out_BHLD = _attend(q_BHLD, k_BKLD, v_BKLD, how)
        parts_HTD.append(out_BHLD.transpose(0, 1).reshape(len(query[0]), count * length, -1))
    return torch.cat(parts_HTD, dim=1)


def _own(
    group: tuple[int, int, int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    how: How,
    shared: tuple[Tensor, Tensor] | None,
    out_HTD: Tensor,
    absent: int = 0,
) -> None:
    """Attend within the sequences of a group, after the shared keys and values, into out_HTD."""
    start, count, length = group
    q_BHLD, k_BKLD, v_BKLD = _sequences(group, query, key, value, absent)
    rows = slice(start - absent, start - absent + count * length)
    if shared is not None:
        k_BKLD, v_BKLD = _after(shared[0], k_BKLD), _after(shared[1], v_BKLD)
    _attend(q_BHLD, k_BKLD, v_BKLD, how, _split(out_HTD[:, rows], count))


def _sequences(
    group: tuple[int, int, int], query: Tensor, key: Tensor, value: Tensor, absent: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a group's queries, keys and values, a sequence apart; the first lack `absent` rows."""
    start, count, length = group
    rows = slice(start, start + count * length)
    asking = slice(rows.start - absent, rows.stop - absent)
    k_BKLD, v_BKLD = (_split(x[0][:, rows], count) for x in (key, value))
    return _split(query[0][:, asking], count), k_BKLD, v_BKLD


def _mergeable(plan: Layout, query: Tensor, how: How) -> bool:
    """Tell whether the prefix can be attended to apart: no window ends inside it."""
    plain = not how.softcap and not how.dropout
    return query.device.type == "cpu" and plain and _unwindowed(plan, how)


def _unwindowed(plan: Layout, how: How) -> bool:
    """Tell whether every token of a sequence sees all of the prefix."""
    return how.window is None or plan.prefix + max(plan.lengths) <= how.window


def _merged(
    plan: Layout, query: Tensor, key: Tensor, value: Tensor, how: How, out_HTD: Tensor
) -> None:
    """Attend to the prefix and to each own sequence apart, and merge the two softmaxes.

    softmax over a and b = w softmax(a) + (1 - w) softmax(b), w = sigmoid(lse(a) - lse(b)). All own
    tokens meet the prefix in one product, without a copy of it for each sequence or a mask.
    """
    prefix, heads, kinds = plan.prefix, query.shape[1], key.shape[1]
    q_HTD, into_HTD = query[0][:, prefix - plan.absent :], out_HTD[:, prefix - plan.absent :]
    # Heads that share keys become further queries of one head.
    folded = q_HTD.reshape(1, kinds, heads // kinds * q_HTD.shape[1], -1)
    one = slice(0, prefix)
    before, lse = _with_lse(folded, key[:, :, one], value[:, :, one], replace(how, causal=False))
    before_HTD = before.reshape(*q_HTD.shape[:2], -1)
    lse_before_HT1 = lse.reshape(*q_HTD.shape[:2], 1)
    lse_HT1 = torch.empty_like(lse_before_HT1)
    for group in plan.groups():
        start, count, length = group
        rows = slice(start - prefix, start - prefix + count * length)
        q_BHLD, k_BKLD, v_BKLD = _sequences(group, query, key, value, plan.absent)
        into_BHLD = _split(into_HTD[:, rows], count)
        _, lse_BHL1 = _with_lse(q_BHLD, k_BKLD, v_BKLD, how, into_BHLD)
        _split(lse_HT1[:, rows], count).copy_(lse_BHL1)
    share_HT1 = torch.sigmoid(lse_before_HT1 - lse_HT1).to(query.dtype)
    into_HTD.lerp_(before_HTD, share_HT1)


def _with_lse(
    q_BHLD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, how: How, out_BHLD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return attention and the log of its softmax's denominator, out_BHLD and lse_BHL1."""
    repeat = q_BHLD.shape[1] // k_BKTD.shape[1]
    k_BHTD, v_BHTD = (x.repeat_interleave(repeat, 1) for x in (k_BKTD, v_BKTD))
    attended, lse_BHL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHLD, k_BHTD, v_BHTD, 0.0, how.causal, scale=how.scale
    )
    attended_BHLD: Tensor = attended if out_BHLD is None else out_BHLD.copy_(attended)
    return attended_BHLD, lse_BHL.unsqueeze(-1)


def _split(x_HTD: Tensor, count: int) -> Tensor:
    """Return the sequences of equal length apart, x_BHLD; a view."""
    x_HBLD: Tensor = x_HTD.unflatten(1, (count, -1))
    return x_HBLD.transpose(0, 1)


def _after(prefix_1KPD: Tensor, x_BKLD: Tensor) -> Tensor:
    return torch.cat([prefix_1KPD.expand(len(x_BKLD), -1, -1, -1), x_BKLD], dim=2)


def _attend(
    q_BHLD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, how: How, out_BHLD: Tensor | None = None
) -> Tensor:
    """Attend from the last L of T positions, each seeing what the mask allows."""
    length, total = q_BHLD.shape[2], k_BKTD.shape[2]
    windowed = how.window is not None and total > how.window
    mask_LT = None
    if windowed or (how.causal and 1 < length < total):
        mask_LT = cpu_attention.visible(
            total - length, length, total, how.causal, how.window, q_BHLD.device
        )
    if how.softcap:
        attended_BHLD = _attend_softcapped(q_BHLD, k_BKTD, v_BKTD, mask_LT, how)
    else:
        attended_BHLD = F.scaled_dot_product_attention(
            q_BHLD,
            k_BKTD,
            v_BKTD,
            attn_mask=mask_LT,
            dropout_p=how.dropout,
            is_causal=how.causal and mask_LT is None and length == total and length > 1,
            scale=how.scale,
            enable_gqa=q_BHLD.shape[1] != k_BKTD.shape[1],
        )
    return attended_BHLD if out_BHLD is None else out_BHLD.copy_(attended_BHLD)


def _attend_softcapped(
    q_BHLD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask_LT: Tensor | None, how: How
) -> Tensor:
    """Attend with soft-capped scores c * tanh(s / c) (Gemma 2)."""
    assert how.softcap is not None
    repeat = q_BHLD.shape[1] // k_BKTD.shape[1]
    k_BHTD, v_BHTD = k_BKTD.repeat_interleave(repeat, 1), v_BKTD.repeat_interleave(repeat, 1)
    scores_BHLT = (q_BHLD @ k_BHTD.transpose(2, 3)) * how.scale
    scores_BHLT = torch.tanh(scores_BHLT / how.softcap) * how.softcap
    if mask_LT is None and how.causal and q_BHLD.shape[2] > 1:
        total = k_BKTD.shape[2]
        mask_LT = cpu_attention.visible(0, total, total, True, None, q_BHLD.device)
    if mask_LT is not None:
        scores_BHLT = scores_BHLT.masked_fill(~mask_LT, -math.inf)
    weights_BHLT = F.softmax(scores_BHLT.float(), dim=-1).to(q_BHLD.dtype)
    return F.dropout(weights_BHLT, how.dropout, training=how.dropout > 0) @ v_BHTD


AttentionInterface.register(NAME, packed_attention)
