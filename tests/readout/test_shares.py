"""The shares of tokens are the weights with which a run adds their states up."""

import numpy as np
import pytest

import embedlm
from embedlm.encode.shown import shown_prompts

TEXTS = ["Plants make food.", "A committee met on Tuesday to review the plan.", "x"]
STATES = {"multi_vector": {"over": "all", "normalize": False, "projection": "none"}}


def shares_of(model, head="dense", **options):
    found = shown_prompts(model.render(TEXTS, **options), model.readout, options.get("role"))
    return [np.array(prompts[0]["shares"][head]) for prompts in found]


@pytest.mark.parametrize(
    "recipe", ["plain-mean", "plain-last", "weighted-mean", "prompteol", "echo", "sgpt"]
)
def test_shares_times_states_are_the_vectors(tiny_llama, recipe):
    model = embedlm.load(tiny_llama, recipe, device="cpu")
    whole = model.with_recipe(model.recipe.override({"heads": [STATES]}))
    states = whole.encode(TEXTS).multi_vector
    vectors = model.encode(TEXTS, normalize=False)
    for share, h_TD, vector in zip(shares_of(model), states, vectors, strict=True):
        np.testing.assert_allclose(share @ h_TD, vector, atol=1e-4)
        assert share.sum() == pytest.approx(1, abs=1e-4)


def test_a_sparse_head_reads_what_it_reduces(tiny_llama):
    last = embedlm.load(tiny_llama, "promptreps", device="cpu")
    for share in shares_of(last, "sparse"):
        assert share.tolist() == [0.0] * (len(share) - 1) + [1.0]
    largest = embedlm.load(tiny_llama, "splade-causal", device="cpu")
    for (prompt,) in shown_prompts(largest.render(TEXTS), largest.readout):
        repeated = [one == "repeat" for one in prompt["segments"]]
        assert [share > 0 for share in prompt["shares"]["sparse"]] == repeated


def test_tokens_that_are_skipped_have_no_share(tiny_llama):
    model = embedlm.load(tiny_llama, "colbert", device="cpu")
    (first, *_) = shares_of(model, "multi_vector", role="document")
    vectors = model.encode_document(TEXTS).multi_vector
    assert (first > 0).sum() == len(vectors[0])


def test_the_first_token_may_be_left_out(tiny_llama):
    recipe = embedlm.Recipe.load("plain-mean").override({"pooling.exclude_sink": "bos"})
    model = embedlm.load(tiny_llama, recipe, device="cpu")
    for share in shares_of(model)[:2]:
        assert share[0] == 0
        assert (share[1:] > 0).all()
