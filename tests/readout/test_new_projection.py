"""A projection that a recipe asks for: made, refused, saved and read back."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import embedlm
from embedlm.errors import ModelError, RecipeError, UnsupportedError

TEXTS = ["plants make food", "x", "the quick brown fox jumps", "a committee met on Tuesday"]


def projecting(**options):
    heads = [{"dense": {"projection": {"width": 24, **options}}}]
    return embedlm.Recipe.load("plain-mean").override({"heads": heads})


@pytest.mark.parametrize("init", [None, "ridge"])
def test_an_untrained_projection_is_not_used_in_silence(tiny_llama, init):
    with pytest.raises(UnsupportedError, match="plan"):
        embedlm.load(tiny_llama, recipe=projecting(init=init))


@pytest.mark.parametrize("init", ["orthogonal", "identity"])
def test_one_that_is_asked_for_is_always_the_same(tiny_llama, init):
    first = embedlm.load(tiny_llama, recipe=projecting(init=init))
    again = embedlm.load(tiny_llama, recipe=projecting(init=init))
    vectors = first.encode(TEXTS, normalize=False)
    assert vectors.shape == (4, 24)
    assert first.dim == 24
    np.testing.assert_array_equal(vectors, again.encode(TEXTS, normalize=False))
    bare = embedlm.load(tiny_llama, recipe="plain-mean").encode(TEXTS, normalize=False)
    if init == "identity":
        np.testing.assert_allclose(vectors, bare[:, :24], atol=1e-6)
    weight_OI = first.readout.parts.projection.parts()[0].linear.weight.numpy()
    np.testing.assert_allclose(weight_OI @ weight_OI.T, np.eye(24), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_saved_for_sentence_transformers_too(tiny_llama, tmp_path, bias):
    model = embedlm.load(tiny_llama, recipe=projecting(init="orthogonal", bias=bias))
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "2_Dense" / "config.json").is_file()
    again = embedlm.load(tmp_path / "saved")
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    assert again.encode(TEXTS, dim=8).shape == (4, 8)
    peer = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(peer.encode(TEXTS), model.encode(TEXTS), atol=1e-5)
    for file in (tmp_path / "saved" / "2_Dense").iterdir():
        file.unlink()
    (tmp_path / "saved" / "2_Dense").rmdir()
    (tmp_path / "saved" / "modules.json").unlink()
    with pytest.raises(UnsupportedError, match="has none"):
        embedlm.load(tmp_path / "saved")


def test_a_checkpoints_projection_of_another_form_is_refused(tiny_llama, tmp_path):
    model = embedlm.load(tiny_llama, recipe=projecting(init="orthogonal"))
    model.save_pretrained(tmp_path / "saved")
    for options in ({"width": 8}, {"bias": False}):
        with pytest.raises(ModelError, match="projection: auto"):
            embedlm.load(tmp_path / "saved", recipe=projecting(**options))
    with pytest.raises(ModelError, match="24 with a bias"):
        model.encode(TEXTS, heads={"dense": {"projection": {"width": 7}}})
    with pytest.raises(UnsupportedError, match="a projection to 7 numbers"):
        embedlm.load(tiny_llama).encode(TEXTS, heads={"dense": {"projection": {"width": 7}}})


def test_other_heads_are_not_held_to_the_width_of_dense_vectors(tiny_llama):
    recipe = projecting(init="orthogonal", width=64).override({"dim": 48})
    model = embedlm.load(tiny_llama, recipe=recipe)
    assert model.encode(TEXTS).shape[1] == 48
    assert len(model.encode(TEXTS, heads="multi_vector")) == len(TEXTS)


def test_a_call_reads_the_checkpoints_projection_though_the_recipe_does_not(tiny_llama, tmp_path):
    model = embedlm.load(tiny_llama, recipe=projecting(init="orthogonal"))
    model.save_pretrained(tmp_path / "saved")
    bare = embedlm.load(tmp_path / "saved", recipe="plain-mean")
    through = {"dense": {"projection": "auto"}}
    projected = bare.with_recipe(bare.recipe.override({"heads": [through]}))
    wanted = projected.encode(TEXTS)
    assert wanted.shape[1] != bare.dim
    found = bare.encode(TEXTS, heads=through)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "options", [{"width": 0}, {"width": 10**6}, {"init": "kaiming"}, {"width": "wide"}, {"to": 3}]
)
def test_what_no_projection_can_have(options):
    with pytest.raises(RecipeError, match="projection"):
        projecting(**options)


def test_identity_cannot_be_wider(tiny_llama):
    with pytest.raises(UnsupportedError, match="at most"):
        embedlm.load(tiny_llama, recipe=projecting(init="identity", width=5000))
