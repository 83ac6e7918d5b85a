"""Fields of a config.json that mean nothing are refused by name, with what is wrong with them."""

import json

import pytest
import transformers as tf

import embedlm
from embedlm.backbone.config import stored_by
from embedlm.errors import ModelError, UnsupportedError
from tests.models import build

FOUR = [1.0, 1.5, 2.0, 4.0]
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 64}
ROPES = {
    "factor": ({"rope_type": "linear", "factor": "4"}, r"factor is '4'; allowed is a number above"),
    "negative": ({"type": "dynamic", "factor": -1}, r"factor is -1; allowed is a number above"),
    "theta": ({"rope_type": "default", "rope_theta": 0}, r"rope_theta is 0; allowed is a number"),
    "flag": ({"type": "linear", "factor": True}, "factor is True; allowed is a number above"),
    "original": (
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1.5},
        r"original_max_position_embeddings is 1\.5; allowed is a whole number",
    ),
    "list": ([1], r"is \[1\]; allowed is a mapping of settings"),
    "short": (
        {**LONG, "short_factor": [1.0], "long_factor": FOUR},
        "short_factor has 1 numbers; needed is one for each of the 4 frequencies",
    ),
    "words": ({**LONG, "short_factor": ["1"] * 4, "long_factor": FOUR}, "allowed is a list of num"),
    "type": ({"type": "su", "factor": 2.0}, r"type is 'su', which transformers does not know"),
}


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("given", "told"), ROPES.values(), ids=list(ROPES))
def test_rotary_positions(copy, change, name, given, told):
    change(copy, drop=("rope_scaling", "rope_parameters"), **{name: given})
    with pytest.raises(ModelError, match=rf"config\.json.*{name}.*{told}"):
        embedlm.load(copy, "plain-mean", device="cpu")


@pytest.fixture
def change():
    def write(folder, drop=(), **keys):
        file = folder / "config.json"
        content = {k: v for k, v in json.loads(file.read_text()).items() if k not in drop}
        file.write_text(json.dumps({**content, **keys}))

    return write


@pytest.mark.parametrize(
    "given",
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 8},
        {**LONG, "short_factor": FOUR, "long_factor": [8.0] * 4},
        {"type": "linear", "factor": 4, "finetuned": True},
        None,
    ],
    ids=str,
)
def test_rotary_positions_that_are_fine(copy, change, given):
    change(copy, drop=("rope_scaling", "rope_parameters"), rope_scaling=given)
    embedlm.load(copy, "plain-mean", device="cpu").encode(["light " * 90])


OTHERS = {
    "hidden_act": ("nope", "hidden_act is 'nope', which transformers does not know there; correct"),
    "mlp_bias": ("x", r"Field 'mlp_bias' expected bool, got str \(value: 'x'\); correct it"),
    "num_attention_heads": (5, r"The hidden size \(32\) is not a multiple of .* \(5\); correct it"),
    "vocab_size": (10, r"2 tensors .* e\.g\. \S+ \(of \(\d+, 32\), and by the config of \(10, 32"),
    "quantization_config": ({"quant_method": "zork"}, "quant_method 'zork', which .* know; known:"),
}


@pytest.mark.parametrize(("key", "value", "told"), [(k, *v) for k, v in OTHERS.items()])
def test_what_is_wrong_is_told(copy, change, key, value, told):
    change(copy, **{key: value})
    with pytest.raises(ModelError, match=told) as caught:
        embedlm.load(copy, "plain-mean", device="cpu")
    assert "corrupt" not in str(caught.value)


def test_layer_types_of_another_count(tmp_path, change):
    folder = build("qwen2", tmp_path / "model")
    change(folder, layer_types=["full_attention"])
    told = r"cannot be used: `num_hidden_layers` \(3\) must be equal .* `layer_types` \(1\); corre"
    with pytest.raises(ModelError, match=told):
        embedlm.load(folder, "plain-mean", device="cpu")


def test_layers_of_few_bits_that_do_not_run_here(copy, monkeypatch):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr("embedlm.backbone.loading._proven", fail)
    monkeypatch.setattr("embedlm.backbone.loading.stored_by", lambda fields: "bitsandbytes")
    told = r"on cpu with weights stored by bitsandbytes \(AssertionError\); take .* plain weights"
    with pytest.raises(UnsupportedError, match=told):
        embedlm.load(copy, "plain-mean", device="cpu")


def test_methods_of_few_bits():
    for method in ("bitsandbytes", "gptq", "awq", "fp8"):
        assert stored_by({"quantization_config": {"quant_method": method}}) == method
    assert stored_by({"quantization_config": {"quant_method": "embedlm_int8_rows"}}) is None


def test_a_head_on_a_decoder_alone(tmp_path):
    folder = build("t5", tmp_path / "model")
    config = tf.T5Config.from_pretrained(folder, is_encoder_decoder=True)
    tf.T5ForConditionalGeneration(config).save_pretrained(folder)
    with pytest.raises(UnsupportedError, match="head on their decoder alone, which reads no text"):
        embedlm.load(folder, "splade", device="cpu")


def test_a_network_that_no_auto_class_opens(copy, change):
    change(copy, model_type="colmodernvbert", architectures=["ColModernVBertForRetrieval"])
    told = r"is a ColModernVBertForRetrieval \('colmodernvbert'\), and"
    with pytest.raises(UnsupportedError, match=told):
        embedlm.load(copy, "plain-mean", device="cpu")


@pytest.mark.parametrize("inside", [None, 5, {"vision_config": {}}])
def test_a_wrapper_without_the_config_inside_is_named(copy, change, inside):
    change(copy, model_type="colpali", architectures=["ColPaliForRetrieval"], vlm_config=inside)
    with pytest.raises(ModelError, match="vlm_config"):
        embedlm.load(copy, "plain-mean", device="cpu")
