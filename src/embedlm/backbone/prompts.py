"""Attention while a language model writes: by matrix products, on a CPU that gains by them.

PyTorch's flash kernel takes half of the time in which prompts of 600 tokens are read in bfloat16,
and nearly half of that in which new tokens are written. What is a prompt, its mask says: rows of
several tokens, padded on the left, each token seeing all before it. A new token may see any keys.
All else (other rows of several tokens, other dtypes and devices) goes to PyTorch as before.

Shapes: B rows, H heads, K key-value heads, T tokens of a row, S keys, D width of a head.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from embedlm.backbone import cpu_attention

__all__ = ["NAME", "left_padding", "prompt_attention"]

NAME = "embedlm_prompts"
_LEAST = 16
"""Tokens of a row from which products are faster."""


class _Seen(threading.local):
    """What this thread's last mask is: all layers of a pass have the same one."""

    last: tuple[weakref.ref[Tensor], tuple[int, ...] | None] | None = None


_seen = _Seen()


def prompt_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as PyTorch's `scaled_dot_product_attention` does (signature of transformers)."""
    plain = not dropout and all(kwargs.get(name) is None for name in ("position_bias", "s_aux"))
    if plain and cpu_attention.suits(query):
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        if query.shape[2] == 1 and _shows_keys(attention_mask, query, key):
            return cpu_attention.attend_one(query, key, value, attention_mask, scale), None
        pads = _pads(module, query, key, attention_mask, kwargs.get("is_causal"))
        if pads is not None:
            return cpu_attention.attend_prompts(query, key, value, pads, scale), None
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return attended


def _shows_keys(mask: Tensor | None, query: Tensor, key: Tensor) -> bool:
    """Tell whether a mask says which keys each token of each row sees, or there is none."""
    shape = len(query), 1, query.shape[2], key.shape[2]
    return mask is None or (mask.dtype == torch.bool and mask.shape == shape)


def _pads(
    module: torch.nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool | None
) -> tuple[int, ...] | None:
    """Return how many places of each row are padding; None where rows are no prompts."""
    batch, tokens = query.shape[0], query.shape[2]
    if tokens < _LEAST or not _shows_keys(mask, query, key):
        return None
    if mask is None:
        causal = getattr(module, "is_causal", True) if causal is None else causal
        return (0,) * batch if causal and key.shape[2] == tokens else None
    last = _seen.last
    if last is None or last[0]() is not mask:
        last = _seen.last = weakref.ref(mask), left_padding(mask)
    return last[1]


def left_padding(mask_B1TS: Tensor) -> tuple[int, ...] | None:
    """Return how many places of each row are padding on its left; None for any other mask.

    Args:
        mask_B1TS: which keys a token sees. The first S - T are of earlier tokens, seen by all; the
            others are the row's own, of which a token sees those up to itself that are no padding.
    """
    mask_BTS = mask_B1TS[:, 0]
    tokens, held = mask_BTS.shape[1], mask_BTS.shape[2] - mask_BTS.shape[1]
    if held < 0:
        return None
    own_BTT = mask_BTS[..., held:]
    pads_B11 = tokens - own_BTT[:, -1].sum(-1)[:, None, None]
    at_T = torch.arange(tokens, device=mask_BTS.device)
    wanted_BTT = (at_T <= at_T[:, None]) & (at_T >= pads_B11)
    padding_BT1 = at_T[:, None] < pads_B11
    held_too = mask_BTS[..., :held] | padding_BT1
    if not (held_too.all() and ((own_BTT == wanted_BTT) | padding_BT1).all()):
        return None
    return tuple(pads_B11.flatten().tolist())


AttentionInterface.register(NAME, prompt_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
