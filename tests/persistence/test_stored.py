"""Weights in other numbers, floats and int8 by row: written, read back, refused where damaged."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

import embedlm
from embedlm.backbone.stored import quantize_rows, store_weights
from embedlm.errors import InputError, ModelError

TEXTS = ["plants make food", "x", "the quick brown fox jumps", "a committee met on Tuesday"]


@pytest.mark.parametrize("shape", [(5, 64), (1, 1), (3, 1000)])
def test_a_row_is_off_by_at_most_its_clipped_part(shape):
    torch.manual_seed(0)
    weight_OI = torch.randn(shape) * torch.logspace(-30, 3, shape[0])[:, None]
    rows_OI, scale_O = quantize_rows(weight_OI)
    assert rows_OI.dtype == torch.int8
    assert scale_O.shape == shape[:1]
    error_O = (rows_OI * scale_O[:, None] - weight_OI).square().sum(1)
    plain_O1 = weight_OI.abs().amax(1, keepdim=True) / 127
    rounded = ((weight_OI / plain_O1).round() * plain_O1 - weight_OI).square().sum(1)
    assert (error_O <= rounded * (1 + 1e-5)).all()


def test_rows_of_zeros_and_of_no_numbers():
    rows_OI, scale_O = quantize_rows(torch.zeros(2, 3))
    assert not rows_OI.any()
    assert (scale_O > 0).all()
    with pytest.raises(ModelError, match="NaN"):
        quantize_rows(torch.tensor([[1.0, torch.nan]]))


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "qwen3"])
def test_int8_by_row_is_read_back(model_folder, tmp_path, name):
    model = embedlm.load(model_folder(name), recipe="plain-mean")
    model.save_pretrained(tmp_path / "int8", save_dtype="int8")
    again = embedlm.load(tmp_path / "int8")
    assert again.backbone.dtype == torch.float32
    assert again.recipe == model.recipe
    cosine = model.similarity_pairwise(again.encode(TEXTS), model.encode(TEXTS))
    assert (cosine > 0.999).all()
    state, before = again.backbone.network.state_dict(), model.backbone.network.state_dict()
    for key, weight in before.items():
        if weight.is_floating_point() and weight.ndim >= 2:
            expected, scale_O = quantize_rows(weight)
            torch.testing.assert_close(state[key], expected * scale_O[:, None], rtol=0, atol=0)
        else:
            assert torch.equal(state[key], weight)


def test_a_head_is_stored_by_row_too(model_folder, tmp_path):
    model = embedlm.load(model_folder("llama"), recipe="splade-causal")
    model.save_pretrained(tmp_path / "int8", save_dtype="int8")
    again = embedlm.load(tmp_path / "int8")
    stored = load_file(tmp_path / "int8" / "model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.int8
    ours, theirs = (m.encode(TEXTS).sparse.toarray() for m in (model, again))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95


def test_only_embedlm_opens_rows_and_expanded_they_are_for_all(model_folder, tmp_path):
    model = embedlm.load(model_folder("llama"), recipe="plain-mean")
    model.save_pretrained(tmp_path / "int8", save_dtype="int8")
    assert not (tmp_path / "int8" / "modules.json").exists()
    assert "int8" in (tmp_path / "int8" / "README.md").read_text()
    with pytest.raises((RuntimeError, ValueError, OSError)):
        SentenceTransformer(str(tmp_path / "int8"), device="cpu")
    opened = embedlm.load(tmp_path / "int8")
    opened.save_pretrained(tmp_path / "expanded")
    peer = SentenceTransformer(str(tmp_path / "expanded"), device="cpu")
    np.testing.assert_allclose(peer.encode(TEXTS), opened.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_weights_in_parts_stay_in_parts(model_folder, tmp_path, dtype):
    model = embedlm.load(model_folder("llama"), recipe="plain-mean")
    model.save_pretrained(tmp_path / "whole", save_dtype=dtype)
    model.save_pretrained(tmp_path / "parts")
    (tmp_path / "parts" / "model.safetensors").unlink()
    network = model.backbone.twin().network
    network.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    store_weights(tmp_path / "parts", dtype)
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    whole, parts = (embedlm.load(tmp_path / name) for name in ("whole", "parts"))
    np.testing.assert_allclose(parts.encode(TEXTS), whole.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_floats_are_saved_as_asked(model_folder, tmp_path, dtype):
    model = embedlm.load(model_folder("bert"), recipe="plain-mean")
    model.save_pretrained(tmp_path / "saved", save_dtype=dtype)
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    floats = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()}
    assert floats == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == dtype
    again = embedlm.load(tmp_path / "saved", dtype="float32")
    for key, weight in model.backbone.network.state_dict().items():
        kept = weight.to(getattr(torch, dtype)).to(weight.dtype)
        expected = kept if weight.is_floating_point() else weight
        assert torch.equal(again.backbone.network.state_dict()[key], expected)


def test_bfloat16_stays_bfloat16(model_folder, tmp_path):
    model = embedlm.load(model_folder("llama"), recipe="plain-mean", dtype="bfloat16")
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


@pytest.mark.parametrize("given", ["int4", "float64", 8, ["int8"]])
def test_an_unknown_dtype_is_refused(model_folder, tmp_path, given):
    model = embedlm.load(model_folder("llama"), recipe="plain-mean")
    with pytest.raises(InputError, match="give float32, bfloat16, float16, int8 or None"):
        model.save_pretrained(tmp_path / "saved", save_dtype=given)
    assert not (tmp_path / "saved").exists()


def test_numbers_that_float16_cannot_hold(model_folder, tmp_path):
    model = embedlm.load(model_folder("llama"), recipe="plain-mean")
    with torch.no_grad():
        model.backbone.network.norm.weight[0] = 1e6
    with pytest.raises(ModelError, match=r"norm\.weight holds numbers that float16 cannot"):
        model.save_pretrained(tmp_path / "saved", save_dtype="float16")
    assert not (tmp_path / "saved").exists()


def _without_scale(stored, config):
    del stored[next(name for name in stored if name.endswith("_scale"))]


def _wrong_shape(stored, config):
    name = next(name for name in stored if name.endswith("_scale"))
    stored[name] = stored[name][:-1]


def _no_scale_at_all(stored, config):
    name = next(name for name in stored if name.endswith("_scale"))
    stored[name] = stored[name] * torch.nan


def _no_axis(stored, config):
    name = next(name for name in stored if name.endswith("proj.weight"))
    stored[name] = stored[name][0]


def _later_form(stored, config):
    config["quantization_config"]["form"] = 99


def _no_marker(stored, config):
    del config["quantization_config"]


def _one_missing(stored, config):
    for name in [name for name in stored if "q_proj" in name]:
        del stored[name]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_without_scale, "has no scales"),
        (_wrong_shape, "have scales of"),
        (_no_scale_at_all, "not all numbers above 0"),
        (_no_axis, "have scales of"),
        (_later_form, "take a newer version"),
        (_no_marker, "cannot be loaded|do not fit"),
        (_one_missing, "do not fit its config"),
    ],
)
def test_damaged_rows_are_refused(model_folder, tmp_path, damage, told):
    folder = tmp_path / "int8"
    model = embedlm.load(model_folder("llama"), recipe="plain-mean")
    model.save_pretrained(folder, save_dtype="int8")
    stored = load_file(folder / "model.safetensors")
    stored = {name: tensor.clone() for name, tensor in stored.items()}
    config = json.loads((folder / "config.json").read_text())
    damage(stored, config)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=told):
        embedlm.load(folder)


def test_a_truncated_file_is_refused(model_folder, tmp_path):
    embedlm.load(model_folder("llama")).save_pretrained(tmp_path / "int8", save_dtype="int8")
    file = tmp_path / "int8" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read"):
        embedlm.load(tmp_path / "int8")
    file.unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        embedlm.load(tmp_path / "int8")
