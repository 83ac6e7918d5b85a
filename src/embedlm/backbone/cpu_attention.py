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
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone.layout import Layout

__all__ = ["How", "attend_packed", "suits", "visible"]

Ints: TypeAlias = npt.NDArray[np.int64]

BLOCK = 128
"""Queries of a block: what a causal mask hides of the keys after it is not computed."""
AT_ONCE = 1 << 18
"""Scores of small sequences that are held at once: one call takes all of their exponentials."""
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
    gathered: slice
    """Of the step's gathered keys: N times E."""
    pairs: int
    """N, the pairs of sequence and key-value head."""
    first: int
    """The position of the first query in its sequence, and how many follow it there."""
    count: int
    keys: int
    """How many keys they may see, from the first."""
    padding_N1X: Tensor | None
    """What is added to the scores of the last keys, which not all sequences have."""

    def seen(self, how: How) -> slice:
        """Return which keys any of the queries sees."""
        if not how.causal or how.window is None:
            return slice(0, self.keys)
        return slice(max(0, self.first - how.window + 1), self.keys)


@dataclass(frozen=True, slots=True)
class _Step:
    """Sequences whose keys are gathered together."""

    index: Tensor
    """Rows of the keys."""
    rounds: tuple[tuple[_Block, ...], ...]
    """Blocks whose scores are held at once."""


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
    out_XD, sum_X1 = (x.index_select(0, plan.scatter) for x in _attend(*rows, plan, how))
    out_XD = out_XD.float().div_(sum_X1).to(out_XD.dtype)
    exact_X1 = (sum_X1 > LEAST) & (sum_X1 < 1 / LEAST)
    if not exact_X1.all():
        shifted_QD, _ = _attend(*rows, plan, how, shifted=True)
        out_XD = torch.where(exact_X1, out_XD, shifted_QD.index_select(0, plan.scatter))
    return out_XD.view(1, tokens, heads, -1)


def _attend(
    q_QD: Tensor, k_SD: Tensor, v_SD: Tensor, plan: _Plan, how: How, *, shifted: bool = False
) -> tuple[Tensor, Tensor]:
    """Return each query's weighted sum of values, out_QD, and the sum of its weights, sum_Q1.

    The weights are exp(s) as they come, which takes a seventh of the time of PyTorch's softmax of
    bfloat16 at 60 keys and half of it at 400; `shifted`: exp(s - max s) over their sum, which no
    score is too large or small for.
    """
    out_QD = q_QD.new_empty(len(q_QD), v_SD.shape[1])
    sum_Q1 = torch.ones(len(q_QD), 1)
    scratch = q_QD.new_empty(plan.scratch)
    for step in plan.steps:
        k_ED, v_ED = (x.index_select(0, step.index) for x in (k_SD, v_SD))
        for blocks in step.rounds:
            used, scored = 0, []
            for block in blocks:
                score_NRE = _scores(
                    q_QD[block.rows], k_ED[block.gathered], block, how, scratch[used:]
                )
                used += score_NRE.numel()
                scored.append((block, score_NRE))
            if not shifted:
                scratch[:used].exp_()
            for block, score_NRE in scored:
                if shifted:
                    torch.softmax(score_NRE, dim=-1, out=score_NRE)
                else:
                    sums_NR1 = sum_Q1[block.rows].view(block.pairs, -1, 1)
                    torch.sum(score_NRE, -1, keepdim=True, dtype=torch.float32, out=sums_NR1)
                v_NED = v_ED[block.gathered].view(block.pairs, -1, v_ED.shape[1])
                out_NRD = out_QD[block.rows].view(block.pairs, -1, v_ED.shape[1])
                torch.bmm(score_NRE, v_NED[:, block.seen(how)], out=out_NRD)
    return out_QD, sum_Q1


def _scores(q_MD: Tensor, k_ED: Tensor, block: _Block, how: How, scratch: Tensor) -> Tensor:
    """Return the scores of a block's queries, with the mask, in the scratch buffer; score_NRE."""
    seen = block.seen(how)
    keys = seen.stop - seen.start
    q_NRD = q_MD.view(block.pairs, -1, q_MD.shape[1])
    score_NRE = scratch[: len(q_MD) * keys].view(block.pairs, -1, keys)
    k_NED = k_ED.view(block.pairs, -1, k_ED.shape[1])
    # Copied here where only some are seen: the product would copy them transposed.
    k_NDE = k_NED[:, seen].reshape(-1).view(block.pairs, keys, -1).transpose(1, 2)
    alpha = how.scale / (how.softcap or 1)
    torch.baddbmm(score_NRE, q_NRD, k_NDE, beta=0, alpha=alpha, out=score_NRE)
    mask_CX = _hidden(block.first - seen.start, block.count, keys, how.causal, how.window)
    _cap(score_NRE.view(-1, block.count, keys), mask_CX, how.softcap)
    if block.padding_N1X is not None:
        score_NRE[..., -block.padding_N1X.shape[-1] :].add_(block.padding_N1X)
    return score_NRE


def _rows(x_1HTD: Tensor) -> Tensor:
    """Return a row for each token and head."""
    return x_1HTD[0].transpose(0, 1).reshape(-1, x_1HTD.shape[-1])


def padded_length(length: int) -> int:
    """Return the length that a sequence is padded to for its products.

    It depends on the sequence alone, so that its sums are the same in any company. In a pack of
    unlike lengths this makes fewer products, and fewer kernels: each shape needs one of its own.
    """
    unit = 2 if length <= 16 else 4 if length <= 32 else 8
    return -(-length // unit) * unit


@lru_cache(maxsize=8)
def _plan(layout: Layout, heads: int, kinds: int, causal: bool) -> _Plan:
    """Return the order of work for a layout."""
    planner = _Planner(layout, heads, kinds, causal)
    for start_B, length_B, size in _sequences(layout):
        planner.add(start_B, length_B, size)
    return planner.plan()


class _Planner:
    """Lays out the products of a pack."""

    def __init__(self, layout: Layout, heads: int, kinds: int, causal: bool) -> None:
        self.layout, self.heads, self.kinds, self.causal = layout, heads, kinds, causal
        self._queries: list[Ints] = []
        self._real: list[npt.NDArray[np.bool_]] = []
        self._steps: list[_Step] = []
        self._keys: list[Ints] = []
        self._rounds: list[list[_Block]] = [[]]
        self._row = self._gathered = self._scores = self._held = self._most = 0

    def plan(self) -> _Plan:
        """Return what was laid out."""
        self._end_step()
        gather, real = np.concatenate(self._queries), np.concatenate(self._real)
        scatter = np.empty(np.count_nonzero(real), np.int64)
        scatter[gather[real]] = np.flatnonzero(real)
        steps = tuple(self._steps)
        return _Plan(torch.from_numpy(gather), torch.from_numpy(scatter), steps, self._most)

    def add(self, start_B: Ints, length_B: Ints, size: int) -> None:
        """Lay out sequences of one padded length, as many at once as the scratch buffer takes."""
        before = self.layout.prefix if start_B[0] else 0
        rows = min(size, BLOCK if self.causal else size)
        each = max(1, SCRATCH // (self.heads * rows * (before + size)))
        for at in range(0, len(start_B), each):
            self._part(start_B[at : at + each], length_B[at : at + each], size, before)
            if self._scores >= AT_ONCE:
                self._end_step()

    def _part(self, start_B: Ints, length_B: Ints, size: int, before: int) -> None:
        heads, kinds, keys = self.heads, self.kinds, before + size
        asking_B = start_B - self.layout.absent
        for low, high, kind in _blocks(len(start_B), size, keys, heads, kinds, self.causal):
            place_C = np.arange(low, high)
            real_BC = place_C < length_B[:, None]
            token_BC = asking_B[:, None] + np.where(real_BC, place_C, 0)
            head_KG = np.arange(heads).reshape(kinds, -1)[kind]
            rows_BKGC = token_BC[:, None, None] * heads + head_KG[:, :, None]
            self._queries.append(rows_BKGC.ravel())
            self._real.append(np.broadcast_to(real_BC[:, None, None], rows_BKGC.shape).ravel())
            pairs = len(start_B) * len(head_KG)
            first = self._gathered + keys * kind.start
            block = _Block(
                rows=slice(self._row, self._row + rows_BKGC.size),
                gathered=slice(first, first + keys * pairs),
                pairs=pairs,
                first=before + low,
                count=high - low,
                keys=before + high if self.causal else keys,
                padding_N1X=None if self.causal else _padding(length_B, size, len(head_KG)),
            )
            self._row += rows_BKGC.size
            self._add(block, rows_BKGC.size * block.keys)
        own_BL = start_B[:, None] + np.where((at_L := np.arange(size)) < length_B[:, None], at_L, 0)
        token_BE = np.hstack([np.broadcast_to(np.arange(before), (len(start_B), before)), own_BL])
        rows_BKE = token_BE[:, None] * kinds + np.arange(kinds)[:, None]
        self._keys.append(rows_BKE.ravel())
        self._gathered += rows_BKE.size

    def _add(self, block: _Block, scores: int) -> None:
        if self._held and self._held + scores > AT_ONCE:
            self._rounds.append([])
            self._held = 0
        self._rounds[-1].append(block)
        self._held += scores
        self._scores += scores
        self._most = max(self._most, self._held)

    def _end_step(self) -> None:
        if not self._keys:
            return
        index = torch.from_numpy(np.concatenate(self._keys))
        self._steps.append(_Step(index, tuple(map(tuple, self._rounds))))
        self._keys, self._rounds = [], [[]]
        self._gathered = self._scores = self._held = 0


def _padding(length_B: Ints, size: int, kinds: int) -> Tensor | None:
    """Return what hides the last keys where they are not a sequence's own; None where all are."""
    least = length_B.min()
    if least == size:
        return None
    hidden_NX = np.repeat(np.arange(least, size) >= length_B[:, None], kinds, axis=0)
    zeros_NX = torch.zeros(hidden_NX.shape, dtype=torch.bfloat16)
    return zeros_NX.masked_fill_(torch.from_numpy(hidden_NX), -math.inf)[:, None]


def _sequences(layout: Layout) -> Iterator[tuple[Ints, Ints, int]]:
    """Yield first tokens, lengths and padded length of the prefix and of each run of like ones."""
    if layout.prefix and not layout.held:
        yield np.zeros(1, np.int64), np.full(1, layout.prefix), layout.prefix
    for size, run in groupby(layout.groups(), key=lambda group: padded_length(group[2])):
        starts, counts, lengths = np.array(list(run)).T
        length_B = np.repeat(lengths, counts)
        first_B = np.repeat(np.cumsum(counts) - counts, counts)
        yield (
            np.repeat(starts, counts) + (np.arange(len(length_B)) - first_B) * length_B,
            length_B,
            size,
        )


def _blocks(
    count: int, length: int, keys: int, heads: int, kinds: int, causal: bool
) -> Iterator[tuple[int, int, slice]]:
    """Yield (first query, end, key-value heads) so that scores fit the scratch buffer."""
    block = BLOCK if causal else max(BLOCK, SCRATCH // (heads * keys))
    for low in range(0, length, block):
        high = min(low + block, length)
        if count > 1 or heads * (high - low) * keys <= SCRATCH:
            yield low, high, slice(0, kinds)
            continue
        step = max(1, SCRATCH // (heads // kinds * (high - low) * keys))
        for kind in range(0, kinds, step):
            yield low, high, slice(kind, min(kind + step, kinds))


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
