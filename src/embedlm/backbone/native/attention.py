"""Attention within the sequences of a packed row, by the kernel in C.

Shapes: T tokens of a row, B rows, H heads, K key-value heads, D width of a head, S sequences.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from embedlm.backbone.layout import Layout
from embedlm.backbone.native.compiled import library

__all__ = ["Places", "attend", "in_layout", "in_rows", "row_steps", "suits"]

log = logging.getLogger(__name__)

_LITTLE = 1 << 24
"""Products of two numbers below which one thread is done before others have been woken."""

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class _Call(ctypes.Structure):
    """`Call` of attention.c."""

    _fields_ = [  # ctypes wants it so
        *((name, _POINTER) for name in ("query", "key", "value", "out")),
        *(
            (f"{name}_{of}", _NUMBER)
            for name in ("query", "key", "value")
            for of in ("token", "head")
        ),
        *((name, _NUMBER) for name in ("heads", "kinds", "width", "value_width", "sequences")),
        *((name, _POINTER) for name in ("asking", "answers", "own", "length", "earlier", "before")),
        ("window", _NUMBER),
        ("causal", _NUMBER),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    ]


class Places(NamedTuple):
    """Where sequences lie, in rows of the queries, results and keys; each of S numbers."""

    asking: Tensor
    answers: Tensor
    own: Tensor
    length: Tensor
    earlier: Tensor
    before: Tensor
    products: int
    """Of queries and keys, about."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Places:
        """Return the places of sequences, given as a row of six numbers each."""
        columns = torch.tensor(rows, dtype=torch.int64).T.contiguous()
        asking, answers, own, length, earlier, before = columns
        products = int((length * (length + before)).sum())
        return cls(asking, answers, own, length, earlier, before, products)


@lru_cache(maxsize=8)
def in_layout(layout: Layout) -> Places:
    """Return the places of a packed row's sequences."""
    prefix, absent = layout.prefix, layout.absent
    rows = [[0, 0, 0, prefix, 0, 0]] if prefix and not layout.held else []
    starts = accumulate(layout.lengths, initial=prefix)
    for start, length in zip(starts, layout.lengths, strict=False):
        rows.append([start - absent, start - absent, start, length, 0, prefix])
    return Places.of(rows)


@lru_cache(maxsize=8)
def in_rows(
    pads: tuple[int, ...], tokens: int, held: int, query_rows: int, key_rows: int
) -> Places:
    """Return the places of rows that are padded on the left.

    Args:
        pads: places without a token at the beginning of each row.
        tokens: places of a row.
        held: keys of a row from earlier passes, which stand before those of its own places.
        query_rows: rows of the queries from one row's to the next one's.
        key_rows: the same of the keys.
    """
    return Places.of(
        [
            [
                at * query_rows + pad,
                at * tokens + pad,
                at * key_rows + held + pad,
                tokens - pad,
                at * key_rows,
                held,
            ]
            for at, pad in enumerate(pads)
        ]
    )


def suits(query: Tensor, key: Tensor, value: Tensor, softcap: float | None = None) -> bool:
    """Tell whether the kernel is there, and takes such tensors."""
    if softcap is not None or query.shape[-1] % 2 or value.shape[-1] % 16:
        return False
    for x in (query, key, value):
        if x.dtype != torch.bfloat16 or x.stride(-1) != 1:
            return False
    return library() is not None and _proven()


def row_steps(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int] | None:
    """Return how many rows of queries, and of keys, lie from one row of a batch to the next.

    None where they are no whole number, or not the same for keys and values.
    """
    steps = [divmod(x.stride(0), x.stride(2) or 1) for x in (query, key, value)]
    even = all(rest == 0 for _, rest in steps) and steps[1] == steps[2]
    return (steps[0][0], steps[1][0]) if even or len(query) == 1 else None


@lru_cache(maxsize=1)
def _proven() -> bool:
    """Tell whether the kernel, which was just compiled, gives what the formula gives."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, count, 25, 32, generator=generator).bfloat16() for count in (4, 2, 2)
    )
    places = in_layout(Layout((3, 20), causal=True, prefix=2))
    out = torch.empty(25, 4, 32, dtype=torch.bfloat16)
    attend(query, key, value, places, out, causal=True, scale=0.2, window=6)
    k_HTD, v_HTD = (
        x[0, :, [0, 1, *range(5, 25)]].float().repeat_interleave(2, 0) for x in (key, value)
    )
    at_T = torch.arange(22)
    seen = (at_T <= at_T[:, None]) & (at_T > at_T[:, None] - 6)
    score_HTT = query[0, :, [0, 1, *range(5, 25)]].float() @ k_HTD.transpose(1, 2) * 0.2
    wanted_HTD = score_HTT.masked_fill(~seen, -torch.inf).softmax(-1) @ v_HTD
    same = torch.allclose(out[5:].transpose(0, 1).float(), wanted_HTD[:, 2:], atol=0.03)
    if not same:
        log.warning("the compiled attention gives wrong numbers, and PyTorch's products are used")
    return same


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    out: Tensor,
    *,
    causal: bool,
    scale: float,
    window: int | None,
) -> Tensor:
    """Attend within each sequence, after the keys before its own; the result is written to `out`.

    A query and a key meet by their places alone, so a row's result does not depend on others.

    Args:
        query: q_BHTD in bfloat16, whose rows are `stride(2)` numbers apart.
        key: k_BKTD, likewise.
        value: v_BKTD, likewise.
        places: of the sequences among these rows.
        out: out_XHD, contiguous; rows of no sequence stay as they are.
        causal: whether a query sees no key after it.
        scale: of the scores.
        window: how many keys back (and, unless causal, ahead) a query sees; None: all.

    Raises:
        MemoryError: there is none for the scores.
    """
    kernels = library()
    assert kernels is not None, "see `suits`"
    heads, kinds = query.shape[1], key.shape[1]
    work = places.products * heads * (query.shape[-1] + value.shape[-1])
    call = _Call(
        *(x.data_ptr() for x in (query, key, value, out)),
        *(x.stride(of) for x in (query, key, value) for of in (2, 1)),
        *(heads, kinds, query.shape[-1], value.shape[-1], len(places.own)),
        *(x.data_ptr() for x in places[:6]),
        *(-1 if window is None else window, int(causal), scale),
        torch.get_num_threads() if work > _LITTLE else 1,
    )
    if kernels.embedlm_attend(ctypes.byref(call)):
        raise MemoryError("no memory for the scores of attention; give fewer tokens at once")
    return out
