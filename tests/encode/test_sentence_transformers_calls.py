"""Calls in sentence-transformers' spelling mean what they mean there."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

import embedlm
from embedlm.errors import InputError

TEXTS = ["plants make food from sunlight.", "the quick brown fox", ""]
CALLS = [
    {},
    {"prompt": "passage: "},
    {"prompt": ""},
    {"prompt": "{x} "},
    {"prompt_name": "query"},
    {"prompt": "other: ", "prompt_name": "query"},
    {"normalize_embeddings": False},
    {"normalize_embeddings": True},
    {"truncate_dim": 8},
]


@pytest.fixture(scope="module", params=[True, False], ids=["normalised", "plain"])
def both(request, model_folder, tmp_path_factory):
    """Return sentence-transformers' model of a folder with prompts, and ours."""
    network = Transformer(str(model_folder("bert")))
    width = network.get_word_embedding_dimension()
    modules = [network, Pooling(width, "mean"), *([Normalize()] if request.param else [])]
    prompts = {"query": "query: ", "lead": "read this: "}
    theirs = SentenceTransformer(
        modules=modules, prompts=prompts, default_prompt_name="lead", device="cpu"
    )
    folder = tmp_path_factory.mktemp("st") / "model"
    theirs.save(str(folder), create_model_card=False)
    return theirs, embedlm.load(folder, device="cpu")


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_call_gives_their_vectors(both, call):
    theirs, ours = both
    np.testing.assert_allclose(ours.encode(TEXTS, **call), theirs.encode(TEXTS, **call), atol=1e-5)


def test_a_prompt_takes_the_place_of_the_recipes(tiny_llama):
    recipe = {"prompt": {"default": "what is {text}?"}, "pooling": {"kind": "last"}}
    model = embedlm.load(tiny_llama, recipe)
    bare = embedlm.load(tiny_llama, "plain-last")
    prompted = model.encode("light", prompt="about ")
    np.testing.assert_allclose(prompted, bare.encode("about light"), atol=2e-5)
    with pytest.raises(InputError, match="token ids"):
        model.encode([[1, 5]], prompt="about ")


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_are_theirs(both, name):
    theirs, ours = both
    theirs.similarity_fn_name = name
    compared = ours.with_recipe(ours.recipe.override({"similarity": name}))
    a, b = ours.encode(TEXTS), ours.encode(TEXTS[::-1])
    np.testing.assert_allclose(compared.similarity(a, b), theirs.similarity(a, b), atol=1e-4)
    pairs = theirs.similarity_pairwise(a, b)
    np.testing.assert_allclose(compared.similarity_pairwise(a, b), pairs, atol=1e-4)
