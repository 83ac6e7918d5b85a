"""What `fit` learns from a corpus belongs to some vectors, and goes with the model."""

import copy
import pickle

import numpy as np
import pytest

import embedlm
from embedlm.errors import ModelError

CORPUS = ["light light light plants", "light fox", "light committee met", "the quick brown fox"]
TEXTS = ["plants make food", "the fox"]


@pytest.fixture(params=["static-tfidf", "static-sif"])
def fitted(tiny_llama, request):
    return embedlm.load(tiny_llama, request.param, device="cpu").fit(CORPUS)


def test_it_is_saved_and_copied(fitted, tmp_path):
    wanted = fitted.encode(TEXTS)
    unfitted = embedlm.load(fitted.name, fitted.recipe, device="cpu")
    assert np.abs(unfitted.encode(TEXTS) - wanted).max() > 1e-3
    fitted.save_pretrained(tmp_path / "saved")
    saved = embedlm.load(tmp_path / "saved", device="cpu")
    for model in (saved, pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(model.encode(TEXTS), wanted)
    saved.save_pretrained(tmp_path / "again")
    again = embedlm.load(tmp_path / "again", device="cpu", max_length=100)
    np.testing.assert_array_equal(again.encode(TEXTS), wanted)


def test_it_is_not_that_of_other_vectors(tiny_llama, tmp_path):
    model = embedlm.load(tiny_llama, "static-sif", device="cpu").fit(CORPUS)
    wanted = embedlm.load(tiny_llama, "static-mean", device="cpu").encode(TEXTS)
    np.testing.assert_array_equal(model.with_recipe("static-mean").encode(TEXTS), wanted)
    model.save_pretrained(tmp_path / "saved")
    other = embedlm.load(tmp_path / "saved", "static-mean", device="cpu")
    np.testing.assert_array_equal(other.encode(TEXTS), wanted)


def test_components_are_those_of_whole_vectors(tiny_llama):
    whole = embedlm.load(tiny_llama, "static-sif", device="cpu").fit(CORPUS)
    cut = embedlm.load(tiny_llama, whole.recipe.override({"dim": 16}), device="cpu").fit(CORPUS)
    np.testing.assert_array_equal(cut.encode(TEXTS), whole.encode(TEXTS, dim=16))
    np.testing.assert_array_equal(cut.encode(TEXTS, dim=32), whole.encode(TEXTS))


def test_files_that_are_not_the_models_own_are_refused(fitted, model_folder, tmp_path):
    fitted.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "statistics.safetensors"
    others = model_folder("llama", hidden_size=64, vocab_size=500)
    wide = embedlm.load(others, fitted.recipe, device="cpu").fit(CORPUS)
    wide.readout.statistics.save(tmp_path)
    for content in (b"damaged", (tmp_path / file.name).read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"statistics\.safetensors cannot be read as token"):
            embedlm.load(tmp_path / "saved", device="cpu")
