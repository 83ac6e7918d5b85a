"""Faults that published software had without a word of warning; none may come back.

Those of attention (windows, implementations, a batch of one) are in test_backbone.py.
"""

import json
import shutil

import numpy as np
import pytest

import embedlm
from tests.command import sentences
from tests.models import STUBBORN

TEXTS = sentences(40, seed=9, longest=16)
RECIPES = ("plain-last", "plain-mean", "weighted-mean", "prompteol", "sgpt", "echo", "splade")


@pytest.fixture
def sided(model_folder, tmp_path):
    """Return a function from an architecture to its folders that pad on the left and the right."""

    def folders(name):
        found = []
        for side in ("left", "right"):
            folder = tmp_path / side
            shutil.copytree(model_folder(name), folder)
            place = folder / "tokenizer_config.json"
            given = json.loads(place.read_text())
            place.write_text(json.dumps({**given, "padding_side": side, "truncation_side": side}))
            found.append(folder)
        return found

    return folders


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("attn", ["packed", "sdpa"])
def test_the_side_of_the_padding_changes_nothing(sided, recipe, attn):
    left, right = (
        embedlm.load(folder, recipe, attn=attn, device="cpu", max_length=60)
        for folder in sided("llama")
    )
    ours, theirs = (dense_of(model.encode(TEXTS)) for model in (left, right))
    np.testing.assert_array_equal(ours, theirs)
    assert left.render(TEXTS[:3]).ids == right.render(TEXTS[:3]).ids


@pytest.mark.parametrize("name", list(STUBBORN))
def test_the_side_of_the_padding_changes_nothing_where_rows_are_padded(sided, name):
    found = [embedlm.load(folder, "plain-last", device="cpu") for folder in sided(name)]
    np.testing.assert_array_equal(*(model.encode(TEXTS) for model in found))
    alone = np.stack([found[0].encode(text) for text in TEXTS])
    np.testing.assert_allclose(found[0].encode(TEXTS), alone, atol=1e-4)


def dense_of(found):
    return found if isinstance(found, np.ndarray) else found.sparse.toarray()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "bert"])
def test_bfloat16_swaps_only_what_was_as_good_as_equal(model_folder, name):
    """A text may overtake another in bfloat16 only if their float32 scores nearly tie."""
    scores = []
    for dtype in ("float32", "bfloat16"):
        model = embedlm.load(model_folder(name), "plain-mean", dtype=dtype, device="cpu")
        vectors = model.encode(TEXTS, normalize=True).astype(np.float64)
        scores.append(vectors[:8] @ vectors[8:].T)
    whole, half = scores
    assert np.abs(whole - half).max() < 0.02
    ahead, still = (s[:, :, None] - s[:, None, :] for s in (whole, half))
    swapped = (ahead > 0) & (still < 0)
    assert ahead[swapped].max(initial=0) < 0.02
    assert (whole.argmax(1) == half.argmax(1)).mean() > 0.8


def test_dtype_auto_keeps_what_the_checkpoint_has(model_folder):
    whole = embedlm.load(model_folder("llama"), "plain-mean", device="cpu")
    stated = embedlm.load(model_folder("llama"), "plain-mean", dtype="float32", device="cpu")
    np.testing.assert_array_equal(whole.encode(TEXTS), stated.encode(TEXTS))


@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_bos_is_no_part_of_a_sparse_vector_of_the_text(tiny_llama, reduce):
    """A causal model's first token sees nothing but itself, and its logits dwarf the others'."""
    recipe = embedlm.Recipe.load("splade").override(
        {"pooling.over": ["text"], "heads": [{"sparse": {"reduce": reduce}}]}
    )
    model = embedlm.load(tiny_llama, recipe, device="cpu")
    everything = model.recipe.override({"pooling.over": "all"})
    other = embedlm.load(tiny_llama, everything, device="cpu")
    without, within = (m.encode(TEXTS[:4]).sparse.toarray() for m in (model, other))
    assert np.abs(without - within).max() > 1e-3
    assert (within - without).min() > -1e-6
