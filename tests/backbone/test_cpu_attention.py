"""Attention by matrix products equals attention by its formula."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from embedlm.backbone import cpu_plan, prepacked
from embedlm.backbone.cpu_attention import How, attend_packed, suits, visible
from embedlm.backbone.layout import Layout


def by_formula(query, key, value, layout, how):
    repeat = query.shape[1] // key.shape[1]
    k_HTD, v_HTD = (x[0].float().repeat_interleave(repeat, 0) for x in (key, value))
    out_THD = torch.zeros(query.shape[2], query.shape[1], value.shape[-1])

    def fill(rows, keys):
        score_HLE = query[0][:, rows].float() @ k_HTD[:, keys].transpose(1, 2) * how.scale
        if how.softcap:
            score_HLE = torch.tanh(score_HLE / how.softcap) * how.softcap
        first = len(keys) - len(rows)
        seen = visible(first, len(rows), len(keys), how.causal, how.window)
        weight_HLE = score_HLE.masked_fill(~seen, -torch.inf).softmax(-1)
        out_THD[rows] = (weight_HLE @ v_HTD[:, keys]).transpose(0, 1)

    before = torch.arange(layout.prefix)
    if layout.prefix:
        fill(before, before)
    start = layout.prefix
    for length in layout.lengths:
        rows = torch.arange(start, start + length)
        fill(rows, torch.cat([before, rows]))
        start += length
    return out_THD[None]


def row(tokens, heads, kinds, width=16):
    """Return query, key and value as a layer gives them: THD in memory."""
    sizes = ((heads, width), (kinds, width), (kinds, 8))
    return [torch.randn(1, tokens, h, w).bfloat16().transpose(1, 2) for h, w in sizes]


def assert_alone_too(found_1THD, packed, lengths, how):
    """Check that each sequence of a pack has, alone, the same results to the last bit."""
    start = 0
    for length in lengths:
        own = slice(start, start + length)
        with torch.inference_mode():
            parts = [x[:, :, own] for x in packed]
            alone_1THD = attend_packed(*parts, Layout((length,), how.causal), how)
        assert torch.equal(found_1THD[:, own], alone_1THD)
        start += length


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 2, 7, 33, 70]), min_size=1, max_size=5),
    prefix=st.sampled_from([0, 1, 9, 40]),
    kinds=st.sampled_from([1, 2, 4]),
    causal=st.booleans(),
    window=st.sampled_from([None, 5, 50]),
    softcap=st.sampled_from([None, 3.0]),
    scratch=st.sampled_from([1, 500, 1 << 20]),
    held=st.booleans(),
)
def test_any_layout_mask_and_block(lengths, prefix, kinds, causal, window, softcap, scratch, held):
    torch.manual_seed(sum(lengths))
    layout = Layout(tuple(sorted(lengths)), causal, prefix if causal else 0, held)
    query, key, value = row(layout.prefix + sum(lengths), 4, kinds)
    how = How(causal, 0.3, window, softcap)
    kept = cpu_plan.BLOCK, cpu_plan.SCRATCH
    cpu_plan.BLOCK, cpu_plan.SCRATCH = 32, scratch
    cpu_plan.of_layout.cache_clear()
    try:
        with torch.inference_mode():
            asking = query[:, :, layout.absent :]
            out_1THD = attend_packed(asking, key, value, layout, how)
    finally:
        cpu_plan.BLOCK, cpu_plan.SCRATCH = kept
        cpu_plan.of_layout.cache_clear()
    wanted_1THD = by_formula(query, key, value, layout, how)[:, layout.absent :]
    assert (out_1THD - wanted_1THD).abs().max() < 0.06


def test_usual_blocks_equal_the_formula():
    torch.manual_seed(0)
    for lengths, causal, prefix in (((1, 30, 150), True, 9), ((30, 30), False, 0)):
        layout = Layout(lengths, causal, prefix)
        query, key, value = row(prefix + sum(lengths), 4, 2)
        with torch.inference_mode():
            out_1THD = attend_packed(query, key, value, layout, How(causal, 0.3))
        wanted_1THD = by_formula(query, key, value, layout, How(causal, 0.3))
        assert (out_1THD - wanted_1THD).abs().max() < 0.04


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=2, max_size=6),
    causal=st.booleans(),
    window=st.sampled_from([None, 5, 50]),
)
def test_a_sequence_is_the_same_to_the_last_bit_in_any_company(lengths, causal, window):
    """Sequences of like lengths are padded to one: by how much depends on each alone."""
    torch.manual_seed(sum(lengths))
    lengths, how = sorted(lengths), How(causal, 0.3, window)
    query, key, value = row(sum(lengths), 4, 2)
    with torch.inference_mode():
        found_1THD = attend_packed(query, key, value, Layout(tuple(lengths), causal), how)
    assert_alone_too(found_1THD, (query, key, value), lengths, how)


@pytest.mark.parametrize("size", [1.0, 40.0, 400.0, -400.0])
def test_scores_of_any_size_equal_the_formula_and_move_no_other_row(size):
    """exp(s) of the first sequence's scores overflows, or is nothing at all."""
    torch.manual_seed(0)
    layout = Layout((20, 20, 33), causal=False, prefix=0)
    query, key, value = row(73, 4, 2)
    how = How(causal=False, scale=0.3)
    with torch.inference_mode():
        before_1THD = attend_packed(query, key, value, layout, how)
        query[:, :, :20], key[:, :, :20] = abs(size) ** 0.5, 1 if size > 0 else -1
        key[:, :, :20] += 0.01 * torch.randn(20, 1)
        query[:, :, :20] *= abs(size) ** 0.5
        found_1THD = attend_packed(query, key, value, layout, how)
    wanted_1THD = by_formula(query, key, value, layout, how)
    assert found_1THD.isfinite().all()
    assert torch.equal(found_1THD[:, 20:], before_1THD[:, 20:])
    # Scores of bfloat16 have steps of 1/256 of their size.
    assert (found_1THD[:, 20:] - wanted_1THD[:, 20:]).abs().max() < 0.04
    assert found_1THD[:, :20].abs().max() <= value[:, :, :20].abs().max()


@pytest.mark.parametrize("window", [None, 4])
def test_no_hidden_score_is_too_large(window):
    """The exponentials of keys that a query may not see are infinite."""
    torch.manual_seed(0)
    how, layout = How(causal=True, scale=1.0, window=window), Layout((9, 12, 12), causal=True)
    query, key, value = (x.abs() for x in row(33, 4, 2))
    with torch.inference_mode():
        before_1THD = attend_packed(query, key, value, layout, how)
        for last in (8, 20, 32):
            key[:, :, last] = 1e4
        found_1THD = attend_packed(query, key, value, layout, how)
    kept = torch.ones(33, dtype=torch.bool)
    kept[[8, 20, 32]] = False
    assert torch.equal(found_1THD[:, kept], before_1THD[:, kept])
    assert found_1THD.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_bfloat16_without_gradient(dtype):
    with torch.inference_mode():
        assert not suits(torch.zeros(1, dtype=dtype))
    assert not suits(torch.zeros(1, dtype=torch.bfloat16))  # a gradient might be asked for


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no fast bfloat16"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_give_the_same_and_come_back(bias, dtype, monkeypatch):
    monkeypatch.setattr(prepacked, "_gains", lambda dtype: True)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(48, 80, bias=bias), nn.GELU(), nn.Linear(80, 33, bias=bias))
    body = body.to(dtype).requires_grad_(False)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    x_BD = torch.randn(7, 48).to(dtype)
    close = 2e-2 if dtype == torch.bfloat16 else 1e-5
    with torch.inference_mode():
        wanted_BD = body(x_BD)
        prepacked.pack([body])
        assert body[0].weight.stride() == (0, 0)  # the plain weight is given up
        torch.testing.assert_close(body(x_BD), wanted_BD, rtol=close, atol=close)
        prepacked.unpack([body])
        for name, value in body.state_dict().items():
            assert torch.equal(value, before[name])
        assert torch.equal(body(x_BD), wanted_BD)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda body: pickle.loads(pickle.dumps(body))])
def test_copies_and_state_of_packed_layers_have_their_weights(way, monkeypatch):
    monkeypatch.setattr(prepacked, "_gains", lambda dtype: True)
    body = nn.Sequential(nn.Linear(48, 80), nn.Linear(80, 48)).requires_grad_(False)
    body.append(nn.Linear(48, 80))[2].weight = body[0].weight  # tied
    before = {name: value.clone() for name, value in body.state_dict().items()}
    x_BD = torch.randn(7, 48)
    with torch.inference_mode():
        prepacked.pack([body])
        packed_BD = body(x_BD)
        other = way(body)
        for state in (body.state_dict(), other.state_dict()):
            assert state.keys() == before.keys()
            assert all(torch.equal(value, before[name]) for name, value in state.items())
        del body
        torch.testing.assert_close(other(x_BD), packed_BD, rtol=1e-5, atol=1e-5)


def test_what_is_trained_is_not_packed_and_what_is_gone_is_released():
    trained = nn.Sequential(nn.Linear(8, 8).bfloat16())
    prepacked.pack([trained])
    assert type(trained[0]) is nn.Linear
    held = len(prepacked._packed)
    body = nn.Sequential(nn.Linear(8, 8).bfloat16()).requires_grad_(False)
    prepacked.pack([body])
    del body
    assert len(prepacked._packed) == held
