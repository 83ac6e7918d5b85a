"""Attention sinks: left out where a recipe asks for it, told where a mean includes one."""

import logging
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import embedlm
from embedlm.errors import RecipeError
from embedlm.persistence.expressible import is_expressible
from embedlm.prompt.segments import SEGMENT_ID
from embedlm.readout import PackStates, sinks
from embedlm.training.trainable import TextRequest, TrainableEmbedder

TEXTS = ["plants make food from sunlight.", "fox", "", "the quick brown fox jumps", "x y z " * 20]
INNER = {"name": "inner", "prompt": {"default": "{text}"}, "pooling": {"kind": "mean", "layer": 2}}
MEANS = ("mean", "weighted_mean", "mean_sqrt_length", "max")


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory):
    """A tiny Llama whose BOS has a state far longer than others', in all layers but the last.

    The norms before attention and after the last layer hide its length from everything else.
    """
    target = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("sink") / "model")
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] *= 3000
    model.save_pretrained(target)
    return target


def recipe(**changes):
    return embedlm.Recipe.load(INNER).override(changes)


def load(folder, **changes):
    return embedlm.load(folder, recipe(**changes), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def by_norm(folder):
    return load(folder, **{"pooling.exclude_sink": True})


def states(folder, texts, layer=2):
    """The hidden states of each text by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for text in texts:
            out = network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
            yield out.hidden_states[layer][0].numpy()


REFERENCE = {
    "mean": lambda h: h.mean(0),
    "max": lambda h: h.max(0),
    "mean_sqrt_length": lambda h: h.sum(0) / len(h) ** 0.5,
    "weighted_mean": lambda h: np.average(h, axis=0, weights=np.arange(1, len(h) + 1)),
}


@pytest.mark.parametrize("how", ["norm", "bos"])
@pytest.mark.parametrize("kind", MEANS)
def test_vectors_are_those_of_the_other_tokens(folder, kind, how):
    model = load(folder, **{"pooling.kind": kind, "pooling.exclude_sink": how})
    expected = []
    for h_LD in states(folder, TEXTS):
        assert len(h_LD) == 1 or np.linalg.norm(h_LD[0]) > 50 * np.linalg.norm(h_LD[1])
        expected.append(REFERENCE[kind](h_LD[1:] if len(h_LD) > 1 else h_LD))
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=1e-4, atol=1e-4)


def test_joined_poolings_leave_single_tokens_alone(folder):
    kinds = ["cls", "mean", "last"]
    changes = {"pooling.kind": kinds, "pooling.exclude_sink": "bos", "pooling.layer": [1, 2]}
    model = load(folder, **changes, **{"backbone.attention": "bidirectional"})
    parts = [
        load(folder, **{**changes, "pooling.kind": kind, "pooling.exclude_sink": sink},
             **{"backbone.attention": "bidirectional"}).encode(TEXTS)
        for kind, sink in (("cls", False), ("mean", "bos"), ("last", False))
    ]  # fmt: skip
    np.testing.assert_allclose(model.encode(TEXTS), np.hstack(parts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_state_that_is_no_number_is_no_sink(by_norm, wrong):
    """Left out as one, it would leave a vector that looks like any other."""
    h_TD = torch.ones(3, 32)
    h_TD[1, 5] = wrong
    pack = PackStates(h_TD, [[1, 5, 6]], [np.full(3, SEGMENT_ID["text"], np.uint8)])
    assert not by_norm.readout.pool(pack).isfinite().all()


@settings(max_examples=25)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=8))
def test_company_changes_nothing(by_norm, texts):
    together = by_norm.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(by_norm.encode(text), vector, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["norm", "bos"])
@pytest.mark.parametrize("over", ["all", ["text"]])
def test_padded_and_shared_prefixes_give_what_packed_gives(folder, how, over):
    changes = {
        "pooling.exclude_sink": how,
        "pooling.over": over,
        "prompt.default": "This sentence : the quick brown fox jumps over {text} in one word",
    }
    packed = load(folder, **changes)
    assert packed.backbone.shares_prefixes
    padded = embedlm.load(folder, recipe(**changes), device="cpu", dtype="float32", attn="sdpa")
    assert not padded.backbone.packs
    np.testing.assert_allclose(packed.encode(TEXTS), padded.encode(TEXTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["norm", "bos"])
def test_training_leaves_out_the_same(folder, how):
    model = load(folder, **{"pooling.exclude_sink": how})
    trained = TrainableEmbedder(model, model.recipe.heads, budget=4096)
    plan = trained.plan_chunks([TextRequest(tuple(TEXTS), None)])
    rows = torch.cat([chunk() for chunk in plan.chunks])[plan.order_N]
    np.testing.assert_allclose(rows.detach().numpy(), model.encode(TEXTS), rtol=1e-4, atol=1e-4)


def test_it_is_kept_with_the_model_but_not_told_to_sentence_transformers(by_norm, tmp_path):
    by_norm.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved", device="cpu", dtype="float32")
    assert again.recipe.pooling.exclude_sink == "norm"
    np.testing.assert_allclose(again.encode(TEXTS), by_norm.encode(TEXTS), rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "saved" / "modules.json").exists()
    last = {"pooling.layer": -1}
    assert is_expressible(recipe(**last))
    assert not is_expressible(recipe(**last, **{"pooling.exclude_sink": "bos"}))
    bridged = by_norm.as_sentence_transformer()
    np.testing.assert_allclose(bridged.encode(TEXTS), by_norm.encode(TEXTS), rtol=1e-4, atol=1e-4)


def test_weights_and_the_sparse_head_leave_it_out_too(folder):
    sparse = [{"sparse": {"reduce": "max"}}]
    changes = {"heads": sparse, "pooling.layer": -1, "pooling.exclude_sink": "bos"}
    without = load(folder, **changes)
    with_it = load(folder, **{**changes, "pooling.exclude_sink": False})
    difference = with_it.encode(TEXTS).sparse - without.encode(TEXTS).sparse
    assert difference.min() >= 0
    assert difference.max() > 0
    idf = load(folder, **{"pooling.exclude_sink": "bos", "pooling.weights": "idf"})
    (h_LD,), (ids,) = states(folder, TEXTS[:1]), idf.render(TEXTS[:1]).ids
    weight_L = idf.readout.vocabulary_weights[ids[1:]]
    expected = np.average(h_LD[1:], axis=0, weights=weight_L)
    np.testing.assert_allclose(idf.encode(TEXTS[0]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pooling.kind": "last"}, "reads single tokens"),
        ({"pooling.kind": ["cls", "last"]}, "reads single tokens"),
        ({"backbone.kind": "static"}, "no attention"),
        ({"heads": ["multi_vector"]}, "read single tokens"),
        ({"pooling.exclude_sink": "first"}, "exclude_sink"),
    ],
)
def test_refused_where_it_means_nothing(changes, told):
    with pytest.raises(RecipeError, match=told):
        recipe(**{"pooling.exclude_sink": "norm", **changes})


@pytest.fixture
def warnings(caplog):
    """What the package warns of sinks, from nothing told on."""
    sinks.warn_of_sink.cache_clear()
    sinks._warn_of_none.cache_clear()
    caplog.set_level(logging.WARNING, logger="embedlm.readout.sinks")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_mean_that_includes_a_sink_is_told_once(folder, warnings):
    model = load(folder)
    assert warnings() == []
    for _ in range(2):
        load(folder).encode(TEXTS)
        model.encode(TEXTS)
    (line,) = warnings()
    assert "layer 2" in line
    assert "pooling.exclude_sink" in line


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling.layer": -1},
        {"pooling.kind": "last"},
        {"pooling.over": ["text"]},
        {"pooling.exclude_sink": "bos"},
        {"pooling.exclude_sink": "norm"},
    ],
    ids=str,
)
def test_nothing_is_told_where_no_mean_includes_one(folder, warnings, changes):
    load(folder, **changes).encode(TEXTS)
    assert warnings() == []


@pytest.mark.parametrize("name", ["bert", "xlm-r", "t5"])
def test_encoders_have_nothing_to_tell(model_folder, warnings, name):
    load(model_folder(name)).encode(TEXTS)
    assert warnings() == []


def test_a_network_without_a_sink_is_told(model_folder, warnings):
    model = load(model_folder("bert"), **{"pooling.exclude_sink": "norm"})
    (line,) = warnings()
    assert "leaves nothing out" in line
    plain = load(model_folder("bert"))
    np.testing.assert_array_equal(model.encode(TEXTS), plain.encode(TEXTS))


def test_no_pass_is_spent_where_no_inner_layer_is_read(folder, monkeypatch):
    spent = []
    monkeypatch.setattr(sinks.StateNorms, "of", lambda h: spent.append(h))
    load(folder, **{"pooling.layer": -1})
    load(folder)
    assert spent == []
