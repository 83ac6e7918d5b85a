"""The layout of packed attention on CUDA, on a kernel written out in plain products."""

import math
from types import SimpleNamespace

import pytest
import torch

from embedlm.backbone import attention, varlen
from embedlm.backbone.cpu_attention import How
from embedlm.backbone.layout import Layout, layout


def plain(q, k, v, starts_q, starts_k, longest_q, longest_k, *, enable_gqa, **options):
    """Do what torch.nn.attention.varlen.varlen_attn is documented to do, sequence by sequence."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return older(q, k, v, starts_q, starts_k, longest_q, longest_k, **options)


def older(q, k, v, starts_q, starts_k, longest_q, longest_k, *, return_aux, scale, window_size):
    """Do the same as that of torch 2.11, which takes no enable_gqa."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeat, 1) for x in (k, v))
    left, right = window_size
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    bounds = zip(
        *(x.tolist() for x in (starts_q, starts_q[1:], starts_k, starts_k[1:])), strict=False
    )
    for a, b, c, d in bounds:
        assert b - a <= longest_q
        assert d - c <= longest_k
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        gap = torch.arange(d - c) - torch.arange(b - a)[:, None] - ((d - c) - (b - a))
        hidden = torch.zeros_like(gap, dtype=torch.bool)
        if left >= 0:
            hidden |= gap < -left
        if right >= 0:
            hidden |= gap > right
        scores = scores.masked_fill(hidden, -math.inf)
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d])
        lse[:, a:b] = scores.logsumexp(-1)
    assert return_aux.lse
    return out, lse


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize(("prefix", "held"), [(0, False), (5, False), (5, True)])
@pytest.mark.parametrize("kernel", [plain, older])
def test_one_call_equals_group_by_group(monkeypatch, kernel, causal, window, prefix, held):
    if prefix and (not causal or window == 3):
        pytest.skip("a shared prefix is causal, and no window ends inside it")
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel, raising=True)
    torch.manual_seed(0)
    lengths = (2, 2, 3, 7, 7)
    plan = Layout(lengths, causal, prefix, held)
    total = prefix + sum(lengths)
    query, key, value = (torch.randn(1, heads, total, 16) for heads in (4, 2, 2))
    query = query[:, :, plan.absent :]
    how = How(causal, 0.25, window, None, 0.0)
    found = varlen.attend(query, key, value, plan, how)
    with layout(plan), torch.inference_mode():
        wanted = attention._packed(query, key, value, how)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_pass_with_gradients_may_follow_one_without():
    """What is kept of lengths is made once, and an inference tensor has no place in a graph."""
    with torch.inference_mode():
        starts = varlen._starts((4, 3, 91), torch.device("cpu"))
    assert starts.tolist() == [0, 4, 7, 98]
    assert not starts.is_inference()


def test_a_kernel_that_does_not_run_is_not_asked_again(monkeypatch, caplog):
    monkeypatch.setattr(varlen, "_off", False)
    card = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 2, 3, 64))
    how = How(True, 1.0, None, None, 0.0)
    assert varlen.suits(card, how)
    varlen.switch_off(RuntimeError("no kernel image"))
    assert not varlen.suits(card, how)
    assert "no kernel image" in caplog.text
