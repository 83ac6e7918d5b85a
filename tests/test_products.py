"""Attention by matrix products equals attention by its formula."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedlm.backbone import products
from embedlm.backbone.products import How, attend, suits, visible


def by_formula(q_BHLD, k_BKTD, v_BKTD, how):
    repeat = q_BHLD.shape[1] // k_BKTD.shape[1]
    k_BHTD, v_BHTD = (x.float().repeat_interleave(repeat, 1) for x in (k_BKTD, v_BKTD))
    score_BHLT = q_BHLD.float() @ k_BHTD.transpose(2, 3) * how.scale
    if how.softcap:
        score_BHLT = torch.tanh(score_BHLT / how.softcap) * how.softcap
    length, total = score_BHLT.shape[2:]
    seen_LT = visible(total - length, length, total, how.causal, how.window)
    score_BHLT = score_BHLT.masked_fill(~seen_LT, -torch.inf)
    return score_BHLT.softmax(-1) @ v_BHTD, score_BHLT.logsumexp(-1, keepdim=True)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 3),
    kinds=st.sampled_from([1, 2, 4]),
    length=st.integers(1, 70),
    before=st.integers(0, 40),
    causal=st.booleans(),
    window=st.sampled_from([None, 5]),
    softcap=st.sampled_from([None, 3.0]),
    scratch=st.sampled_from([1, 500, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_any_shape_mask_and_block(
    count, kinds, length, before, causal, window, softcap, scratch, seed
):
    torch.manual_seed(seed)
    q_BHLD = torch.randn(count, 4, length, 16).bfloat16()
    k_BKTD, v_BKTD = torch.randn(2, count, kinds, before + length, 16).bfloat16()
    how = How(causal, 0.3, window, softcap)
    kept = products.BLOCK, products.SCRATCH
    products.BLOCK, products.SCRATCH = 32, scratch
    try:
        with torch.inference_mode():
            out_BHLD, lse_BHL1 = attend(q_BHLD, k_BKTD, v_BKTD, how)
    finally:
        products.BLOCK, products.SCRATCH = kept
    want_BHLD, want_BHL1 = by_formula(q_BHLD, k_BKTD, v_BKTD, how)
    assert (out_BHLD - want_BHLD).abs().max() < 0.06
    assert (lse_BHL1 - want_BHL1).abs().max() < 0.06


def test_compiled_equals_uncompiled_and_writes_where_it_is_told():
    torch.manual_seed(0)
    for length, causal in itertools.product((1, 30, 150), (True, False)):
        q_BHLD = torch.randn(2, 4, length, 16).bfloat16()
        k_BKTD, v_BKTD = torch.randn(2, 2, 2, length, 16).bfloat16()
        into_BHLD = torch.zeros(2, length, 4, 16, dtype=torch.bfloat16).transpose(1, 2)
        with torch.inference_mode():
            attend(q_BHLD, k_BKTD, v_BKTD, How(causal, 0.3, fused=True), into_BHLD)
        want_BHLD, _ = by_formula(q_BHLD, k_BKTD, v_BKTD, How(causal, 0.3))
        assert (into_BHLD - want_BHLD).abs().max() < 0.04


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_bfloat16_without_gradient(dtype):
    with torch.inference_mode():
        assert not suits(torch.zeros(1, dtype=dtype))
    assert not suits(torch.zeros(1, dtype=torch.bfloat16))  # a gradient might be asked for
