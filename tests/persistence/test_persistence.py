"""Saved models open again, here and in sentence-transformers, with the same vectors."""

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, SparseEncoder

import embedlm
from embedlm import Recipe
from embedlm.errors import InputError, ModelError, UnsupportedError
from embedlm.persistence.expressible import is_expressible

TEXTS = ["plants make food", "x", "the quick brown fox jumps", "a committee met on Tuesday"]
PREFIX = {"default": "{text}", "query": "Query: {text}", "document": "Title {{x}}: {text}"}


@pytest.mark.parametrize("kind", ["last", "mean", "weighted_mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_round_trip_through_sentence_transformers(model_folder, tmp_path, kind, normalize):
    name, attention = ("bert", "native") if kind == "cls" else ("llama", "causal")
    recipe = {
        "name": "mine",
        "backbone": {"attention": attention},
        "prompt": PREFIX,
        "pooling": {"kind": kind},
        "normalize": normalize,
    }
    model = embedlm.load(model_folder(name), recipe=recipe)
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved")
    assert again.recipe == model.recipe
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)

    peer = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(peer.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    for role in ("query", "document"):
        theirs = peer.encode(TEXTS, prompt_name=role)
        np.testing.assert_allclose(theirs, model.encode(TEXTS, role=role), atol=1e-5)

    peer.save(str(tmp_path / "theirs"))
    back = embedlm.load(tmp_path / "theirs")
    assert back.recipe.pooling.kind == kind
    for role in (None, "query", "document"):
        ours = model.encode(TEXTS, role=role)
        np.testing.assert_allclose(back.encode(TEXTS, role=role), ours, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_bidirectional_attention_survives_saving(model_folder, tmp_path, name):
    recipe = embedlm.Recipe.load("plain-mean").override({"backbone.attention": "bidirectional"})
    model = embedlm.load(model_folder(name), recipe=recipe)
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved")
    assert not again.backbone.causal
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    if name == "qwen3":
        peer = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        np.testing.assert_allclose(peer.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", ["prompteol", "promptreps", "echo", "static-sif", "pretended-cot"])
def test_what_cannot_be_expressed_says_so_and_still_round_trips(model_folder, tmp_path, name):
    model = embedlm.load(model_folder("llama"), recipe=name)
    assert not is_expressible(model.recipe)
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "modules.json").exists()
    assert "cannot express" in (tmp_path / "saved" / "README.md").read_text()
    again = embedlm.load(tmp_path / "saved")
    ours, theirs = model.encode(TEXTS), again.encode(TEXTS)
    if name == "promptreps":
        np.testing.assert_allclose(theirs.sparse.toarray(), ours.sparse.toarray(), atol=1e-6)
        ours, theirs = ours.dense, theirs.dense
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


ROLES = ("default", "query", "document")
OTHERWISE = [
    {"prompt.truncate": "end", "prompt.default": "ask: {text}{eos}"},
    {"prompt.truncate": "slot"},
    {"pooling.remove_components": 1},
    {"pooling.denoise": True, "prompt.default": "ask: {text}"},
    {"prompt.max_length": {"query": 20}},
]
ALIKE = [{}, {"prompt.truncation_side": "left"}, {"prompt.max_length": dict.fromkeys(ROLES, 9)}]


@pytest.mark.parametrize("changes", [*OTHERWISE, *ALIKE], ids=str)
def test_what_sentence_transformers_opens_has_the_same_vectors(tiny_llama, tmp_path, changes):
    recipe = Recipe.load("plain-mean").override({"prompt.max_length": 20, **changes})
    model = embedlm.load(tiny_llama, recipe, device="cpu").fit(TEXTS)
    texts = [*TEXTS, "the quick brown fox jumps over the lazy dog " * 9]
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved", device="cpu").encode(texts)
    np.testing.assert_allclose(again, model.encode(texts), atol=1e-5)
    opened = (tmp_path / "saved" / "modules.json").exists()
    assert opened == (changes in ALIKE)
    if opened:
        peer = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
        np.testing.assert_allclose(peer.encode(texts), model.encode(texts), atol=1e-4)


@pytest.mark.parametrize("over", ["all", ["text"]])
def test_a_sparse_model_that_reads_the_text_alone_is_not_said_to_open_there(
    model_folder, tmp_path, over
):
    recipe = Recipe.load("splade").override({"pooling.over": over, "heads.sparse.top_k": 9})
    model = embedlm.load(model_folder("bert"), recipe, device="cpu")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "modules.json").exists() == (over == "all")
    if over == "all":
        peer = SparseEncoder(str(tmp_path / "saved"), device="cpu")
        wanted = model.encode(TEXTS).sparse.toarray()
        np.testing.assert_allclose(peer.encode(TEXTS).to_dense().numpy(), wanted, atol=1e-4)


def test_saving_replaces_a_model_and_nothing_else(model_folder, tmp_path):
    model = embedlm.load(model_folder("llama"), recipe="plain-mean")
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="holds something that is no model"):
        model.save_pretrained(other)
    with pytest.raises(InputError, match="is a file"):
        model.save_pretrained(other / "photo.jpg")
    assert (other / "photo.jpg").read_bytes() == b"x"


def test_a_recipe_given_wins_over_the_folder(model_folder, tmp_path):
    embedlm.load(model_folder("llama"), recipe="prompteol").save_pretrained(tmp_path / "saved")
    assert embedlm.load(tmp_path / "saved").recipe.name == "prompteol"
    assert embedlm.load(tmp_path / "saved", recipe="plain-last").recipe.name == "plain-last"


def test_unknown_modules_are_named(model_folder, tmp_path):
    folder = tmp_path / "saved"
    embedlm.load(model_folder("llama"), recipe="plain-mean").save_pretrained(folder)
    (folder / "embedlm.yaml").unlink()
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_X", "type": "sentence_transformers.models.X"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedError, match=r"models\.X.*known: Transformer"):
        embedlm.load(folder)
    (folder / "modules.json").write_text("[")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        embedlm.load(folder)


def test_the_built_in_model_needs_nothing():
    model = embedlm.load()
    vectors = model.encode(["A dog runs.", "The dog is running.", "Shares fell sharply."])
    assert vectors.shape == (3, model.dim)
    assert np.isfinite(vectors).all()
    assert (model.dim, embedlm.load("builtin-base").dim) == (384, 576)


def test_the_default_is_the_tuned_model_and_a_recipe_takes_the_base():
    tuned, base = embedlm.load(device="cpu"), embedlm.load(recipe="plain-mean", device="cpu")
    assert tuned.recipe.name == "builtin"
    assert not tuned.backbone.causal
    assert base.backbone.causal
    a, b, c = tuned.encode(["A man rides a horse.", "Someone is riding.", "Shares fell."])
    assert a @ b > a @ c + 0.2
    named = embedlm.load("builtin-base", recipe="plain-mean", device="cpu")
    np.testing.assert_array_equal(named.encode("light"), base.encode("light"))


@pytest.mark.parametrize("head", ["sparse", "multi_vector"])
def test_a_trained_model_has_only_the_heads_of_its_recipe(head, tmp_path, tiny_llama):
    with pytest.raises(UnsupportedError, match=f"trained to give dense.*defines {head}"):
        embedlm.load(device="cpu").encode(["plants"], heads=[head])
    embedlm.load(tiny_llama, "prompteol").save_pretrained(tmp_path / "saved")
    with pytest.raises(UnsupportedError, match="trained to give dense"):
        embedlm.load(tmp_path / "saved").encode(["plants"], heads=["dense", head])
    # A recipe that is given says what is read of an untrained model, and a call may ask for more.
    model = embedlm.load(tmp_path / "saved", "plain-mean")
    assert model.encode(["plants"], heads=[head]).heads == (head,)
