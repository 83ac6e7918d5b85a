"""A prompt is read by matrix products exactly where its mask says that it is one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from embedlm.backbone import cpu_attention, prompts
from embedlm.backbone.prompts import left_padding, prompt_attention

fast = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no fast bfloat16"
)


def mask_of(pads, tokens, held):
    """Return what transformers gives for rows padded on the left, after `held` keys."""
    at_S = torch.arange(held + tokens)
    causal_TS = at_S <= held + torch.arange(tokens)[:, None]
    rows = [causal_TS & ((at_S < held) | (at_S >= held + pad)) for pad in pads]
    return torch.stack(rows)[:, None]


rows_of_prompts = given(
    pads=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    longest=st.integers(1, 60),
    held=st.sampled_from([0, 0, 1, 33]),
)


@settings(max_examples=60, deadline=None)
@rows_of_prompts
def test_padding_is_read_from_the_mask(pads, longest, held):
    tokens = max(pads) + longest
    mask_B1TS = mask_of(pads, tokens, held)
    assert left_padding(mask_B1TS) == tuple(pads)
    assert left_padding(mask_B1TS[..., :-1]) is None or tokens == 1
    for row, place in ((0, pads[0]), (len(pads) - 1, tokens - 1)):
        changed = mask_B1TS.clone()  # a key less: a window, a block, a prefix that is not seen
        changed[row, 0, place, held + pads[row] if place > pads[row] else 0] ^= True
        assert left_padding(changed) != tuple(pads)


@fast
@settings(max_examples=40, deadline=None)
@rows_of_prompts
def test_products_equal_the_formula(pads, longest, held):
    torch.manual_seed(longest)
    tokens = max(pads) + longest
    query = torch.randn(len(pads), 4, tokens, 16).bfloat16()
    key, value = torch.randn(2, len(pads), 2, held + tokens, 16).bfloat16()
    mask_B1TS = mask_of(pads, tokens, held)
    with torch.inference_mode():
        found_BTHD = cpu_attention.attend_prompts(query, key, value, tuple(pads), 0.3)
    assert found_BTHD.isfinite().all()
    k_BHSD, v_BHSD = (x.float().repeat_interleave(2, 1) for x in (key, value))
    score_BHTS = query.float() @ k_BHSD.transpose(2, 3) * 0.3
    weight_BHTS = score_BHTS.masked_fill(~mask_B1TS, -torch.inf).softmax(-1)
    wanted_BTHD = (weight_BHTS @ v_BHSD).transpose(1, 2)
    for row, pad in enumerate(pads):
        assert (found_BTHD[row, pad:] - wanted_BTHD[row, pad:]).abs().max() < 0.06


@fast
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("keys", [1, 7, 300])
def test_one_token_sees_what_its_mask_shows(keys, masked):
    torch.manual_seed(keys)
    query = torch.randn(5, 6, 1, 16).bfloat16()
    key, value = torch.randn(2, 5, 2, keys, 16).bfloat16()
    mask_B11S = torch.rand(5, 1, 1, keys) < 0.6 if masked else None
    if mask_B11S is not None:
        mask_B11S[..., -1] = True
    with torch.inference_mode():
        found_B1HD, _ = prompt_attention(nn.Identity(), query, key, value, mask_B11S, scaling=0.3)
    k_BHSD, v_BHSD = (x.float().repeat_interleave(3, 1) for x in (key, value))
    score_BH1S = query.float() @ k_BHSD.transpose(2, 3) * 0.3
    if mask_B11S is not None:
        score_BH1S = score_BH1S.masked_fill(~mask_B11S, -torch.inf)
    wanted_B1HD = (score_BH1S.softmax(-1) @ v_BHSD).transpose(1, 2)
    assert (found_B1HD - wanted_B1HD).abs().max() < 0.06


def layers(model_class, config_class, **more):
    torch.manual_seed(0)
    config = config_class(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, **more,
    )  # fmt: skip
    return model_class(config).bfloat16().eval()


@fast
@pytest.mark.parametrize(
    ("model", "taken"),
    [
        (layers(LlamaForCausalLM, LlamaConfig), True),
        (
            layers(
                Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, sliding_window=20,
                max_window_layers=0,
            ),
            False,
        ),
    ],
)  # fmt: skip
def test_a_model_reads_prompts_as_with_sdpa_and_windows_go_to_sdpa(model, taken, monkeypatch):
    calls = []
    attend = cpu_attention.attend_prompts
    monkeypatch.setattr(
        cpu_attention, "attend_prompts", lambda *args: calls.append(args) or attend(*args)
    )
    ids_BT = torch.randint(0, 99, (3, 50))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :20] = mask_BT[2, :3] = 0
    logits = {}
    for name in ("sdpa", prompts.NAME):
        model.set_attn_implementation(name)
        with torch.inference_mode():
            first = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=True)
            more_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], 1)
            then = model(
                input_ids=ids_BT, attention_mask=more_BT, past_key_values=first.past_key_values
            )
        logits[name] = torch.cat([first.logits[:, -1], then.logits[:, -1]]).float()
    # The second pass has padding among its earlier keys, which is no prompt's mask.
    assert len(calls) == (2 if taken else 0)
    assert (logits["sdpa"] - logits[prompts.NAME]).abs().max() < 0.03


@pytest.mark.parametrize(
    "change",
    [{"dropout": 0.1}, {"position_bias": torch.zeros(1, 4, 20, 20)}, {"is_causal": False}],
)
def test_all_else_goes_to_sdpa(change, monkeypatch):
    monkeypatch.setattr(cpu_attention, "attend_prompts", None)
    query = torch.randn(1, 4, 20, 16).bfloat16()
    with torch.inference_mode():
        out_BTHD, _ = prompt_attention(nn.Identity(), query, query, query, None, **change)
    assert out_BTHD.shape == (1, 20, 4, 16)
