"""Attention by matrix products, for a CPU whose bfloat16 units outrun its attention kernel.

PyTorch's flash kernel on the CPU reaches about a fifth of the machine's matrix-product rate at the
lengths of sentences and paragraphs. Here the rows of a pack are gathered once in the order in which
products want them, scores are a batched product into a scratch buffer that stays in the cache, and
heads that share keys are further rows of one product, so that no key is copied for each of them. A
shared prefix stands before each sequence's own keys.

Shapes: T tokens of the pack, H heads, K key-value heads, G = H / K, D width of a head, B sequences
of a step, N = B * K, R rows of queries, E keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from embedlm.backbone.layout import Layout

__all__ = ["How", "attend_packed", "suits", "visible"]

BLOCK = 128
"""Queries of a block: what a causal mask hides of the keys after it is not computed."""
SCRATCH = 1 << 21
"""Scores held at once, about: 4 MB, so that they stay in the cache between the passes."""

LEAST = 1e-30
"""Sums of exp(s) from this to its inverse are taken: others come near the ends of the numbers."""


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


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries that meet their keys in one product."""

    rows: slice
    """Of the gathered queries: N times R."""
    batch: slice
    """Which of the step's N pairs of sequence and key-value head."""
    first: int
    """The position of the first query in its sequence, and how many follow it there."""
    count: int
    keys: int
    """How many keys they may see, from the first."""

    def seen(self, how: How) -> slice:
        """Return which keys any of the queries sees."""
        if not how.causal or how.window is None:
            return slice(0, self.keys)
        return slice(max(0, self.first - how.window + 1), self.keys)


@dataclass(frozen=True, slots=True)
class _Step:
    """Sequences of one length whose keys are gathered together."""

    index: Tensor
    """Rows of the keys, N times E."""
    keys: int
    blocks: tuple[_Block, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a pack is gone through; the same for all its layers."""

    gather: Tensor
    """Rows of the queries in the order of the blocks."""
    scatter: Tensor
    """Where each row's result is found."""
    steps: tuple[_Step, ...]
    scratch: int


@lru_cache(maxsize=1)
def _fast_products() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def suits(query: Tensor) -> bool:
    """Tell whether products are the faster way for such queries; they have no gradient."""
    cheap = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return cheap and not torch.is_grad_enabled() and _fast_products()


def attend_packed(query: Tensor, key: Tensor, value: Tensor, layout: Layout, how: How) -> Tensor:
    """Attend within each sequence of a packed row, after the shared prefix; out_1THD.

    Args:
        query: q_1HTD, in memory best as THD.
        key: k_1KTD, with the prefix's before them even where its tokens are not in the row.
        value: v_1KTD.
        layout: where the sequences lie.
        how: mask and scale.
    """
    heads, kinds, tokens = query.shape[1], key.shape[1], query.shape[2]
    plan = _plan(layout, heads, kinds, how.causal)
    rows = _rows(query).index_select(0, plan.gather), _rows(key), _rows(value)
    out_QD, sum_Q1 = _attend(*rows, plan, how, shifted=False)
    out_QD = out_QD.float().div_(sum_Q1).to(out_QD.dtype)
    exact_Q1 = (sum_Q1 > LEAST) & (sum_Q1 < 1 / LEAST)
    if not exact_Q1.all():
        shifted_QD, _ = _attend(*rows, plan, how, shifted=True)
        out_QD = torch.where(exact_Q1, out_QD, shifted_QD)
    return out_QD.index_select(0, plan.scatter).view(1, tokens, heads, -1)


def _attend(
    q_QD: Tensor, k_SD: Tensor, v_SD: Tensor, plan: _Plan, how: How, *, shifted: bool
) -> tuple[Tensor, Tensor]:
    """Return each query's weighted sum of values, out_QD, and the sum of its weights, sum_Q1.

    The weights are exp(s) as they come, which takes a seventh of the time of PyTorch's softmax of
    bfloat16 at 60 keys and half of it at 400; `shifted`: exp(s - max s) over their sum, which no
    score is too large or small for.
    """
    out_QD = q_QD.new_empty(len(q_QD), v_SD.shape[1])
    sum_Q1 = torch.ones(len(q_QD), 1)
    scratch = q_QD.new_empty(plan.scratch)
    alpha = how.scale / (how.softcap or 1)
    for step in plan.steps:
        k_NED = k_SD.index_select(0, step.index).view(-1, step.keys, k_SD.shape[1])
        v_NED = v_SD.index_select(0, step.index).view(-1, step.keys, v_SD.shape[1])
        for block in step.blocks:
            pairs = block.batch.stop - block.batch.start
            seen = block.seen(how)
            keys = seen.stop - seen.start
            q_NRD = q_QD[block.rows].view(pairs, -1, q_QD.shape[1])
            score_NRE = scratch[: pairs * q_NRD.shape[1] * keys].view(pairs, -1, keys)
            # Copied here where only some are seen: the product would copy them transposed.
            k_NDE = k_NED[block.batch, seen].reshape(-1).view(pairs, keys, -1).transpose(1, 2)
            torch.baddbmm(score_NRE, q_NRD, k_NDE, beta=0, alpha=alpha, out=score_NRE)
            mask_CX = _hidden(block.first - seen.start, block.count, keys, how.causal, how.window)
            _cap(score_NRE.view(-1, block.count, keys), mask_CX, how.softcap)
            if shifted:
                torch.softmax(score_NRE, dim=-1, out=score_NRE)
            else:
                sums_NR1 = sum_Q1[block.rows].view(pairs, -1, 1)
                torch.sum(score_NRE.exp_(), -1, keepdim=True, dtype=torch.float32, out=sums_NR1)
            v_NED_seen = v_NED[block.batch, seen]
            torch.bmm(score_NRE, v_NED_seen, out=out_QD[block.rows].view(pairs, -1, v_SD.shape[1]))
    return out_QD, sum_Q1


def _rows(x_1HTD: Tensor) -> Tensor:
    """Return a row for each token and head."""
    return x_1HTD[0].transpose(0, 1).reshape(-1, x_1HTD.shape[-1])


@lru_cache(maxsize=8)
def _plan(layout: Layout, heads: int, kinds: int, causal: bool) -> _Plan:
    """Return the order of work for a layout."""
    steps, gathers, row, most = [], [], 0, 0
    for start, count, length in _sequences(layout):
        before = layout.prefix if start else 0
        keys = before + length
        size = heads * min(length, BLOCK if causal else length) * keys
        for first in range(0, count, max(1, SCRATCH // size)):
            last = min(first + max(1, SCRATCH // size), count)
            begin_B = start + length * torch.arange(first, last)
            asking_B = begin_B - layout.absent
            blocks = []
            for low, high, some in _blocks(len(begin_B), length, keys, heads, kinds, causal):
                rows_BKGC = _query_rows(asking_B[some[0]], some[1], low, high, heads, kinds)
                gathers.append(rows_BKGC.flatten())
                end = row + rows_BKGC.numel()
                pairs = slice(
                    some[0].start * kinds + some[1].start,
                    (some[0].stop - 1) * kinds + some[1].stop,
                )
                seen = before + high if causal else keys
                blocks.append(_Block(slice(row, end), pairs, before + low, high - low, seen))
                most = max(most, rows_BKGC.numel() * seen)
                row = end
            index = _key_rows(begin_B, length, before, kinds)
            steps.append(_Step(index, keys, tuple(blocks)))
    gather = torch.cat(gathers)
    scatter = torch.empty_like(gather).scatter_(0, gather, torch.arange(len(gather)))
    return _Plan(gather, scatter, tuple(steps), most)


def _sequences(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """Yield (first token, sequences, length) of the prefix and of each run of equal lengths."""
    if layout.prefix and not layout.held:
        yield 0, 1, layout.prefix
    yield from layout.groups()


def _blocks(
    count: int, length: int, keys: int, heads: int, kinds: int, causal: bool
) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Yield (first query, end, sequences and key-value heads) so that scores fit the scratch."""
    block = BLOCK if causal else max(BLOCK, SCRATCH // (heads * keys))
    for low in range(0, length, block):
        high = min(low + block, length)
        if count > 1 or heads * (high - low) * keys <= SCRATCH:
            yield low, high, (slice(0, count), slice(0, kinds))
            continue
        step = max(1, SCRATCH // (heads // kinds * (high - low) * keys))
        for kind in range(0, kinds, step):
            yield low, high, (slice(0, 1), slice(kind, min(kind + step, kinds)))


def _query_rows(
    begin_B: Tensor, kind: slice, low: int, high: int, heads: int, kinds: int
) -> Tensor:
    """Return the rows of queries low to high of some sequences and key-value heads, BKGC."""
    token_BC = begin_B[:, None] + torch.arange(low, high)
    head_KG = torch.arange(heads).view(kinds, -1)[kind]
    return token_BC[:, None, None, :] * heads + head_KG[None, :, :, None]


def _key_rows(begin_B: Tensor, length: int, prefix: int, kinds: int) -> Tensor:
    """Return the rows of the prefix's and the sequences' own keys, BKE as one row."""
    own_BE = begin_B[:, None] + torch.arange(length)
    token_BE = torch.cat([torch.arange(prefix).expand(len(begin_B), -1), own_BE], dim=1)
    return (token_BE[:, None, :] * kinds + torch.arange(kinds)[None, :, None]).flatten()


def _cap(score_MCE: Tensor, mask_CX: Tensor | None, softcap: float | None) -> None:
    """Bound scores (over `softcap`, where there is one) and hide those of the mask, in place."""
    if softcap is not None:
        score_MCE.tanh_().mul_(softcap)
    if mask_CX is not None:
        score_MCE[..., -mask_CX.shape[1] :].add_(mask_CX)


@lru_cache(maxsize=64)
def _hidden(first: int, rows: int, total: int, causal: bool, window: int | None) -> Tensor | None:
    """Return what is added to the last scores of `rows` queries from position `first`, mask_CX.

    Keys before those that all of the queries see stay out of the mask; None: all see all.
    """
    windowed = window is not None and total > window
    begin = 0 if windowed else first + 1 if causal else total
    if begin >= total:
        return None
    seen_CX = visible(first, rows, total, causal, window)[:, begin:]
    return torch.zeros(seen_CX.shape, dtype=torch.bfloat16).masked_fill_(~seen_CX, -math.inf)


def visible(
    first: int, rows: int, total: int, causal: bool, window: int | None, device: Any = None
) -> Tensor:
    """Return which of `total` keys each of `rows` queries from position `first` may see."""
    query_C1 = torch.arange(first, first + rows, device=device)[:, None]
    key_1E = torch.arange(total, device=device)[None, :]
    allowed_CE = torch.ones(rows, total, dtype=torch.bool, device=device)
    if causal:
        allowed_CE &= key_1E <= query_C1
        if window is not None:
            allowed_CE &= key_1E > query_C1 - window
    elif window is not None:
        # transformers counts the window inclusively once attention is bidirectional.
        allowed_CE &= (key_1E - query_C1).abs() <= window
    return allowed_CE
