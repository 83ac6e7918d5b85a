"""What a config.json says of attention and widths holds, or the model is refused."""

import json

import pytest
import torch
import transformers as tf

import embedlm
from benchmarks.tiny_models import tiny_model
from embedlm.backbone import load_backbone
from embedlm.errors import ModelError, UnsupportedError
from embedlm.schema.recipe import Backbone
from tests.models import GQA, SMALL, build_tokenizer

IGNORING = {
    "llama": tf.LlamaConfig(**GQA),
    "mistral": tf.MistralConfig(**{**GQA, "sliding_window": 6}),
    "ministral3": tf.Ministral3Config(**GQA, head_dim=8),
    "qwen2": tf.Qwen2Config(**GQA),
    "qwen3": tf.Qwen3Config(**GQA, head_dim=8),
}


def saved(network, folder):
    network.eval().save_pretrained(folder)
    build_tokenizer("decoder").save_pretrained(folder)
    return folder


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def native(folder):
    return load_backbone(str(folder), Backbone(attention="native"), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    "fields", [{"use_bidirectional_attention": True}, {"is_causal": False}], ids=str
)
@pytest.mark.parametrize("name", IGNORING)
def test_bidirectional_attention_that_a_class_ignores(name, fields, tmp_path):
    torch.manual_seed(0)
    saved(tf.AutoModel.from_config(IGNORING[name]), tmp_path)
    assert native(tmp_path).causal
    edit(tmp_path, **fields)
    backbone = native(tmp_path)
    assert not backbone.causal
    asked = load_backbone(
        str(tmp_path), Backbone(attention="bidirectional"), dtype="float32", device="cpu"
    )
    rows = [[20, 21, 22, 23, 24, 25, 26, 27, 28, 29], [30, 31, 32]]
    torch.testing.assert_close(backbone.run(rows), asked.run(rows))


def test_bidirectional_attention_of_the_config_within_a_config(tmp_path):
    network = tiny_model("llava")
    saved(network, tmp_path)
    assert native(tmp_path).causal
    inner = json.loads((tmp_path / "config.json").read_text())["text_config"]
    edit(tmp_path, text_config={**inner, "use_bidirectional_attention": True})
    assert not native(tmp_path).causal


def test_a_recipe_that_says_causal_wins(tmp_path):
    saved(tf.AutoModel.from_config(IGNORING["llama"]), tmp_path)
    edit(tmp_path, use_bidirectional_attention=True)
    assert load_backbone(str(tmp_path), Backbone(attention="causal"), device="cpu").causal


def test_a_direction_that_means_nothing_is_refused(tmp_path):
    saved(tf.AutoModel.from_config(IGNORING["llama"]), tmp_path)
    edit(tmp_path, use_bidirectional_attention="sometimes")
    with pytest.raises(ModelError, match="use_bidirectional_attention: 'sometimes'"):
        native(tmp_path)


def test_a_network_that_cannot_look_ahead_is_refused(tmp_path):
    saved(tiny_model("mamba"), tmp_path)
    edit(tmp_path, use_bidirectional_attention=True)
    with pytest.raises(UnsupportedError, match="bidirectional"):
        native(tmp_path)


@pytest.mark.parametrize("name", ["embedding_gemma2_text", "opt"])
def test_the_width_is_that_of_the_states(name, tmp_path):
    changes = {"word_embed_proj_dim": 16} if name == "opt" else {}
    saved(tiny_model(name, **changes), tmp_path)
    model = embedlm.load(tmp_path, recipe="plain-mean")
    assert model.dim == model.backbone.dim == model.encode("plants").shape[0]
    assert model.dim != model.backbone.text_config.hidden_size


def test_the_first_state_of_a_causal_network_is_no_vector(tiny_llama):
    recipe = embedlm.Recipe.load("plain-mean").override({"pooling.kind": "cls"})
    with pytest.raises(UnsupportedError, match="every text would get the same vector"):
        embedlm.load(tiny_llama, recipe=recipe)
    model = embedlm.load(tiny_llama, recipe="plain-mean")
    with pytest.raises(UnsupportedError, match="every text would get the same vector"):
        model.with_recipe(recipe)
    both = recipe.override({"backbone.attention": "bidirectional"})
    first, other = embedlm.load(tiny_llama, recipe=both).encode(["plants", "a fox"])
    assert abs(first - other).max() > 1e-3


@pytest.mark.parametrize("config", [tf.MPNetConfig, tf.XLMRobertaConfig, tf.BertConfig])
def test_padding_within_a_text_is_counted_as_the_class_counts_it(config, tmp_path):
    torch.manual_seed(0)
    network = tf.AutoModel.from_config(config(**{**SMALL, "pad_token_id": 1})).eval()
    saved(network, tmp_path)
    rows = [[20, 1, 22, 1, 1, 25, 26], [1, 31, 32], [40] * 9]
    with torch.no_grad():
        expected = torch.cat([network(torch.tensor([row])).last_hidden_state[0] for row in rows])
    torch.testing.assert_close(native(tmp_path).run(rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["absolute", "rotary"])
def test_mask_tokens_that_a_network_counts_are_those_of_their_own_row(positions, tmp_path):
    torch.manual_seed(0)
    options = {"mask_token_id": 3, "position_embedding_type": positions, "token_dropout": True}
    config = tf.EsmConfig(**{**SMALL, "pad_token_id": 1, **options})
    network = tf.AutoModel.from_config(config).eval()
    saved(network, tmp_path)
    rows = [[20, 3, 22, 3, 25], [30, 31, 32], [40] * 9]
    with torch.no_grad():
        expected = torch.cat([network(torch.tensor([row])).last_hidden_state[0] for row in rows])
    torch.testing.assert_close(native(tmp_path).run(rows), expected, rtol=1e-4, atol=1e-5)
