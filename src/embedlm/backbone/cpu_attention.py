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
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone.cpu_plan import Block, Plan, bits, of_layout, of_prompts
from embedlm.backbone.layout import Layout
from embedlm.backbone.native import attention as kernel

__all__ = ["How", "attend_one", "attend_packed", "attend_prompts", "suits", "visible"]

Ints: TypeAlias = npt.NDArray[np.int64]

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
    if kernel.suits(query, key, value, how.softcap):
        out_THD = query.new_empty(tokens, heads, value.shape[-1])
        seen: dict[str, Any] = {"causal": how.causal, "scale": how.scale, "window": how.window}
        kernel.attend(query, key, value, kernel.in_layout(layout), out_THD, **seen)
        return out_THD.unsqueeze(0)
    plan = of_layout(layout, heads, kinds, how.causal)
    return _attend_all(query, key, value, plan, how).view(1, tokens, heads, -1)


def attend_prompts(
    query: Tensor, key: Tensor, value: Tensor, pads: tuple[int, ...], scale: float
) -> Tensor:
    """Attend under a causal mask within rows that are padded on the left; out_BTHD.

    Args:
        query: q_BHTD.
        key: k_BKSD; those of earlier passes, which have no padding, stand before the T.
        value: v_BKSD.
        pads: places of each row without a token; what stands there is no result.
        scale: of the scores.
    """
    batch, heads, tokens, _ = query.shape
    if kernel.suits(query, key, value) and (rows := kernel.row_steps(query, key, value)):
        out_BTHD = query.new_zeros(batch, tokens, heads, value.shape[-1])
        places = kernel.in_rows(pads, tokens, key.shape[2] - tokens, *rows)
        kernel.attend(query, key, value, places, out_BTHD, causal=True, scale=scale, window=None)
        return out_BTHD
    plan = of_prompts(pads, tokens, key.shape[2] - tokens, heads, key.shape[1])
    out_XD = _attend_all(query, key, value, plan, How(causal=True, scale=scale))
    return out_XD.view(batch, tokens, heads, -1)


def attend_one(
    query: Tensor, key: Tensor, value: Tensor, mask_B11S: Tensor | None, scale: float
) -> Tensor:
    """Attend from one token of each row, which sees what a mask shows; out_B1HD.

    Args:
        query: q_BH1D.
        key: k_BKSD.
        value: v_BKSD.
        mask_B11S: the keys that are seen; None: all.
        scale: of the scores.
    """
    batch, heads, kinds, keys = *query.shape[:2], *key.shape[1:3]
    q_NGD, k_NSD, v_NSD = (x.reshape(batch * kinds, -1, x.shape[-1]) for x in (query, key, value))
    score_NGS = query.new_empty(batch * kinds, heads // kinds, keys)
    torch.baddbmm(score_NGS, q_NGD, k_NSD.transpose(1, 2), beta=0, alpha=scale, out=score_NGS)
    if mask_B11S is not None:
        score_NGS.view(batch, heads, 1, keys).masked_fill_(~mask_B11S, -math.inf)
    weight_NGS = torch.softmax(score_NGS, -1, dtype=torch.float32).to(query.dtype)
    return torch.bmm(weight_NGS, v_NSD).view(batch, 1, heads, -1)


def _attend_all(query: Tensor, key: Tensor, value: Tensor, plan: Plan, how: How) -> Tensor:
    """Return the results of all rows of queries, out_XD."""
    rows = _rows(query).index_select(0, plan.gather), _rows(key), _rows(value)
    out_XD, sum_X1 = (x.index_select(0, plan.scatter) for x in _attend(*rows, plan, how))
    out_XD = out_XD.float().div_(sum_X1).to(out_XD.dtype)
    exact_X1 = (sum_X1 > LEAST) & (sum_X1 < 1 / LEAST)
    if not exact_X1.all():
        shifted_QD, _ = _attend(*rows, plan, how, shifted=True)
        out_XD = torch.where(exact_X1, out_XD, shifted_QD.index_select(0, plan.scatter))
    return out_XD


def _attend(
    q_QD: Tensor, k_SD: Tensor, v_SD: Tensor, plan: Plan, how: How, *, shifted: bool = False
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
                _hide(score_NRE, block, how, shifted=shifted)
                if shifted:
                    torch.softmax(score_NRE, dim=-1, out=score_NRE)
                else:
                    sums_NR1 = sum_Q1[block.rows].view(block.pairs, -1, 1)
                    torch.sum(score_NRE, -1, keepdim=True, dtype=torch.float32, out=sums_NR1)
                v_NED = v_ED[block.gathered].view(block.pairs, -1, v_ED.shape[1])
                out_NRD = out_QD[block.rows].view(block.pairs, -1, v_ED.shape[1])
                torch.bmm(score_NRE, v_NED[:, block.seen(how.causal, how.window)], out=out_NRD)
    return out_QD, sum_Q1


def _scores(q_MD: Tensor, k_ED: Tensor, block: Block, how: How, scratch: Tensor) -> Tensor:
    """Return the scores of a block's queries, unmasked, in the scratch buffer; score_NRE."""
    seen = block.seen(how.causal, how.window)
    keys = seen.stop - seen.start
    q_NRD = q_MD.view(block.pairs, -1, q_MD.shape[1])
    score_NRE = scratch[: len(q_MD) * keys].view(block.pairs, -1, keys)
    k_NED = k_ED.view(block.pairs, -1, k_ED.shape[1])
    # Copied here where only some are seen: the product would copy them transposed.
    k_NDE = k_NED[:, seen].reshape(-1).view(block.pairs, keys, -1).transpose(1, 2)
    alpha = how.scale / (how.softcap or 1)
    torch.baddbmm(score_NRE, q_NRD, k_NDE, beta=0, alpha=alpha, out=score_NRE)
    if how.softcap is not None:
        score_NRE.tanh_().mul_(how.softcap)
    return score_NRE


def _hide(x_NRE: Tensor, block: Block, how: How, *, shifted: bool) -> None:
    """Take the keys that a query may not see out of its weights, or, if `shifted`, its scores."""
    seen = block.seen(how.causal, how.window)
    keys = seen.stop - seen.start
    shown_CX = _shown(block.first - seen.start, block.count, keys, how.causal, how.window)
    _keep(x_NRE.view(-1, block.count, keys), shown_CX, shifted=shifted)
    _keep(x_NRE, block.shown_N1X, shifted=shifted)


def _keep(x_MCE: Tensor, shown_X: Tensor | None, *, shifted: bool) -> None:
    """Keep the last numbers of each row where a mask of bits is -1; others become 0, or -inf.

    PyTorch adds a mask of bfloat16 to the ends of rows at a tenth of the speed of this.
    """
    if shown_X is None:
        return
    last_MCX = x_MCE[..., -shown_X.shape[-1] :]
    if shifted:
        last_MCX.masked_fill_(shown_X == 0, -math.inf)
    else:
        last_MCX.view(torch.int16).bitwise_and_(shown_X)


def _rows(x_BHTD: Tensor) -> Tensor:
    """Return a row for each token and head."""
    return x_BHTD.transpose(1, 2).reshape(-1, x_BHTD.shape[-1])


@lru_cache(maxsize=64)
def _shown(first: int, rows: int, total: int, causal: bool, window: int | None) -> Tensor | None:
    """Return which of the last keys each of `rows` queries from position `first` sees, shown_CX.

    Keys before those that all of the queries see stay out of it; None: all see all.
    """
    windowed = window is not None and total > window
    # With all keys in it the mask lies as the weights do, which takes half the time.
    begin = 0 if windowed or (causal and not first) else first + 1 if causal else total
    if begin >= total:
        return None
    return bits(visible(first, rows, total, causal, window)[:, begin:])


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
