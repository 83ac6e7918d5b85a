"""Studies change the recipe alone: a projection and latent attention stay on the model."""

from itertools import pairwise

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, models

import embedlm
from embedlm.evaluation.measures import spearman
from embedlm.readout.similarity import cosine
from embedlm.studies import Runtime, compare, search_layers

WIDTH = 12
TEXTS = ["plants make food from light", "the quick brown fox", "light"]
DEV = [(a, b, float(i)) for i, (a, b) in enumerate([*pairwise(TEXTS)] * 2)]


@pytest.fixture(scope="module")
def projected(tiny_llama, tmp_path_factory):
    """A folder of sentence-transformers with a linear layer after the pooling."""
    target = tmp_path_factory.mktemp("projected") / "model"
    network = models.Transformer(str(tiny_llama))
    pooling = models.Pooling(network.get_word_embedding_dimension(), "mean")
    layer = models.Dense(network.get_word_embedding_dimension(), WIDTH)
    SentenceTransformer(modules=[network, pooling, layer], device="cpu").save(str(target))
    return target


@pytest.fixture(scope="module")
def attending(tiny_llama):
    """A model with latent attention before its pooling, untrained."""
    return embedlm.load(tiny_llama, "nv-embed-v2", device="cpu")


def score(model):
    """Spearman's correlation of a model on the pairs."""
    vectors = model.encode([text for a, b, _ in DEV for text in (a, b)], heads=["dense"])
    scores = model.similarity_pairwise(vectors[::2], vectors[1::2])
    return spearman(scores, [gold for *_, gold in DEV])


@pytest.mark.parametrize("name", ["projected", "attending"])
def test_layers_are_scored_with_the_parts_of_the_model(name, request, tiny_llama):
    if name == "projected":
        source, recipe = request.getfixturevalue(name), None
    else:
        source, recipe = tiny_llama, "nv-embed-v2"
    model = embedlm.load(source, recipe, device="cpu")
    assert name != "projected" or model.dim == WIDTH
    scored = {entry.layer: entry.score for entry in search_layers(model, DEV, [-1, -2])}
    for layer in (-1, -2):
        fresh = embedlm.load(source, model.recipe.override({"pooling.layer": layer}), device="cpu")
        assert scored[layer] == pytest.approx(score(fresh), abs=1e-6)


def test_another_recipe_keeps_the_width_of_the_projection(projected):
    model = embedlm.load(projected, device="cpu")
    changed = model.with_recipe(model.recipe.override({"pooling.kind": "last"}))
    assert changed.encode(TEXTS).shape == (3, WIDTH)
    folder = embedlm.load(projected, changed.recipe, device="cpu")
    np.testing.assert_allclose(changed.encode(TEXTS), folder.encode(TEXTS), atol=1e-6)


def test_the_same_recipe_keeps_the_latent_attention(attending):
    same = attending.with_recipe(attending.recipe)
    cosines = cosine(same.encode(TEXTS), attending.encode(TEXTS), pairwise=True)
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


@pytest.mark.parametrize("name", ["projected", "attending"])
def test_parity_names_the_pooling_of_a_model_with_its_parts(name, request):
    """Without projection or latents, no change of the recipe would explain the other side."""
    fixture = request.getfixturevalue(name)
    model = embedlm.load(fixture, device="cpu") if name == "projected" else fixture
    last = model.with_recipe(model.recipe.override({"pooling.kind": "last"}))
    side = Runtime(name, "embedlm", model)
    outcome = compare(side, Known(last.encode(TEXTS, heads=["dense"])), TEXTS)
    assert outcome.rows[0].parts == "pooling", outcome
    assert "pooling.kind: last" in outcome.rows[0].detail


class Known:
    """A side of which only the vectors are known."""

    kind = name = "known"

    def __init__(self, vectors):
        self.known_nD = vectors

    def vectors(self, _):
        return self.known_nD

    def ids(self, _):
        return None
