"""Positions are those of the network's own forward, and no vector depends on its company."""

import numpy as np
import pytest
import torch
import transformers as tf

import embedlm
from embedlm.backbone import load_backbone
from embedlm.schema.recipe import Backbone
from tests.models import GQA, SMALL, build_tokenizer

SHORT, LONG, LONGER = "plants make food", "the quick brown fox jumps " * 12, "a committee met " * 25
ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 32.0],
        "original_max_position_embeddings": 32,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("config", [tf.MPNetConfig, tf.XLMRobertaConfig, tf.BertConfig])
def test_positions_are_those_of_a_plain_forward(config, tmp_path):
    torch.manual_seed(0)
    network = tf.AutoModel.from_config(config(**{**SMALL, "pad_token_id": 3})).eval()
    network.save_pretrained(tmp_path)
    build_tokenizer("decoder", 128).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), Backbone(attention="native"), dtype="float32")
    rows = [[20, 21, 22, 23, 24, 25, 26], [30, 31, 32], [20, 3, 3, 21, 22], [3, 20]]
    with torch.no_grad():
        seen = [(ids, torch.ones_like(ids)) for ids in (torch.tensor([row]) for row in rows)]
        states = [network(ids, attention_mask=mask).last_hidden_state[0] for ids, mask in seen]
        expected = torch.cat(states)
        torch.testing.assert_close(backbone.run(rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attn", ["auto", "sdpa"])
@pytest.mark.parametrize("kind", ROPES)
def test_a_vector_is_equal_alone_and_in_company(kind, attn, tmp_path):
    torch.manual_seed(0)
    small = {**GQA, "max_position_embeddings": 32 if kind == "dynamic" else 128}
    network = tf.AutoModel.from_config(
        tf.LlamaConfig(**small, rope_parameters={"rope_theta": 1e4, **ROPES[kind]})
    )
    network.eval().save_pretrained(tmp_path)
    build_tokenizer("decoder", 512).save_pretrained(tmp_path)
    model = embedlm.load(
        str(tmp_path), recipe="plain-mean", dtype="float32", attn=attn, max_length=120
    )
    texts = [SHORT, LONG, LONGER]
    together = model.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(model.encode([text])[0], vector, rtol=1e-3, atol=1e-5)
        ids = torch.tensor([model.render([text]).ids[0]])
        fresh = tf.AutoModel.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            expected = fresh(ids).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attn", ["auto", "sdpa"])
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_an_encoder_made_causal_is_equal_alone_and_in_company(model_folder, name, attn):
    """The masks that transformers builds for padding in an encoder look ahead."""
    recipe = embedlm.Recipe.load("plain-mean").override({"backbone.attention": "causal"})
    model = embedlm.load(model_folder(name), recipe=recipe, attn=attn)
    texts = [SHORT, LONG, "fox"]
    for text, vector in zip(texts, model.encode(texts), strict=True):
        np.testing.assert_allclose(model.encode([text])[0], vector, rtol=1e-4, atol=1e-5)
