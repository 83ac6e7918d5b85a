"""An Embedder is copied, pickled, and used by other processes."""

import copy
import json
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest

import embedlm
from embedlm.errors import UnsupportedError
from embedlm.schema.recipe import Recipe

TEXTS = ["plants make food", "light", "the quick brown fox"]


@pytest.fixture(scope="module")
def model():
    return embedlm.load(device="cpu")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_is_whole_and_independent(model, copied):
    vectors = model.encode(TEXTS * 100)  # long enough for packed weights
    other = copied(model)
    np.testing.assert_allclose(other.encode(TEXTS), vectors[:3], atol=1e-6)
    assert other.backbone.network is not model.backbone.network
    assert (other.recipe, other.name) == (model.recipe, model.name)
    np.testing.assert_allclose(model.encode(TEXTS), vectors[:3], atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_splits_special_tokens_where_the_tokenizer_does(tiny_llama, tmp_path, copied):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text()) | {"split_special_tokens": True}
    settings.write_text(json.dumps(content))
    plain = Recipe.load("plain-mean").override({"prompt.special_tokens_in_text": "tokens"})
    model = embedlm.load(folder, plain, device="cpu")
    texts = [f"plants </s> {text}" for text in TEXTS]
    split = model.render(texts).ids
    end = model.tokenizer.eos_token_id
    assert end not in split[0]
    assert copied(model).render(texts).ids == split
    model.tokenizer.split_special_tokens = False
    assert end in model.render(texts).ids[0]
    assert end in copied(model).render(texts).ids[0]


def test_a_head_is_copied_with_its_ties(tiny_llama):
    model = embedlm.load(tiny_llama, recipe="promptreps", device="cpu")
    other = pickle.loads(pickle.dumps(model))
    ours, theirs = model.encode(TEXTS), other.encode(TEXTS)
    np.testing.assert_allclose(ours.dense, theirs.dense, atol=1e-5)
    assert abs(ours.sparse - theirs.sparse).max() < 1e-5


def test_a_fork_encodes(model):
    vectors = model.encode(TEXTS)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        (theirs,) = pool.map_async(model.encode, [TEXTS]).get(timeout=60)
    np.testing.assert_allclose(theirs, vectors, atol=1e-6)


def test_joblib_takes_it(model):
    joblib = pytest.importorskip("joblib")
    parallel = joblib.Parallel(n_jobs=2, backend="threading")
    vectors = parallel(joblib.delayed(model.encode)(text) for text in TEXTS)
    np.testing.assert_allclose(np.stack(vectors), model.encode(TEXTS), atol=1e-5)
    assert joblib.hash(TEXTS)


def test_weights_of_8_bits_are_refused():
    model = embedlm.load(device="cpu", dtype="int8")
    with pytest.raises(UnsupportedError, match="another dtype"):
        pickle.dumps(model)


def test_numpy_and_pandas_strings_are_texts(model):
    vectors = model.encode(TEXTS)
    np.testing.assert_array_equal(model.encode(np.array(TEXTS)), vectors)
    np.testing.assert_array_equal(model.encode(np.array(TEXTS, dtype=object)), vectors)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS}, index=[5, 6, 7])
    np.testing.assert_array_equal(model.encode(frame["text"]), vectors)
    np.testing.assert_array_equal(model.encode(frame["text"].astype("string")), vectors)
