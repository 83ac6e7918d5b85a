"""One reading of token states: every pooling, head and part, by every way that reads them."""

import copy
import shutil

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

import embedlm
from embedlm.errors import InputError, UnsupportedError
from embedlm.readout import HEADS, PackStates
from embedlm.readout.pooling import POOL
from embedlm.readout.similarity import SPARSE
from embedlm.schema.recipe import POOLINGS
from embedlm.training.trainable import TextRequest, TrainableEmbedder

TEXTS = ["plants make food from sunlight.", "the quick brown fox", "", "x y z " * 30, "fox"]
RECIPE = {
    "name": "of-a-test",
    "prompt": {"default": "read: {text} end:{eos}"},
    "normalize": True,
}


def recipe(**changes):
    return embedlm.Recipe.load(RECIPE).override(changes)


def gradients(model):
    """Return the vectors that training sees, with the heads of the model's recipe."""
    trained = TrainableEmbedder(model, model.recipe.heads, budget=4096)
    plan = trained.plan_chunks([TextRequest(tuple(TEXTS), None)])
    rows = torch.cat([chunk() for chunk in plan.chunks])[plan.order_N]
    return rows.detach(), trained.readout.columns(plan.longest), plan.longest


def test_every_pooling_of_the_schema_has_a_function():
    assert set(POOL) == set(POOLINGS)


@pytest.mark.parametrize("layer", [-1, -2, [1, 2]], ids=str)
@pytest.mark.parametrize("kind", POOLINGS)
def test_training_reads_what_encoding_reads(tiny_llama, kind, layer):
    changes = {"pooling.kind": kind, "pooling.layer": layer, "pooling.over": ["text"]}
    model = embedlm.load(tiny_llama, recipe(**changes, normalize=False), device="cpu")
    rows, _, _ = gradients(model)
    np.testing.assert_allclose(rows.numpy(), model.encode(TEXTS), rtol=1e-6, atol=2e-5)


OPTIONS = {
    "dense": ["dense"],
    "sparse": [{"sparse": {"reduce": "max"}}, {"sparse": {"reduce": "pool"}}],
    "multi_vector": [{"multi_vector": {"over": ["text"]}}, {"multi_vector": {"normalize": False}}],
}
"""A row a head: the options that the acceptance tests run it with."""
ROWS = [(kind, option) for kind, options in OPTIONS.items() for option in options]


def same(kind, a, b, atol=2e-5):
    """Assert that two outputs of a head are equal."""
    assert HEADS[kind].count(a) == HEADS[kind].count(b)
    if kind == "multi_vector":
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, atol=atol)
    else:
        x, y = (v.toarray() if hasattr(v, "toarray") else v for v in (a, b))
        np.testing.assert_allclose(x, y, atol=atol)


def test_every_head_has_a_row():
    assert set(OPTIONS) == set(HEADS)


@pytest.fixture(params=ROWS, ids=str)
def headed(request, tiny_llama):
    """Return a head's name and a model that has it."""
    kind, option = request.param
    model = embedlm.load(tiny_llama, recipe(heads=["dense", option][kind == "dense" :]))
    return kind, model


def output(kind, model, texts, **options):
    outputs = model.encode(texts, heads=[kind], **options)
    return outputs if kind == "dense" else outputs[kind]


class TestEveryHead:
    """What holds for any head."""

    def test_order_company_and_duplicates_change_nothing(self, headed):
        kind, model = headed
        whole = output(kind, model, [*TEXTS, *TEXTS[::-1]])
        for index, text in enumerate(TEXTS):
            one = output(kind, model, [text])
            for other in (index, 2 * len(TEXTS) - 1 - index):
                same(kind, one, [whole[other]] if isinstance(whole, list) else whole[[other]])

    def test_no_texts_give_an_empty_output(self, headed):
        kind, model = headed
        empty = output(kind, model, [])
        assert HEADS[kind].count(empty) == 0
        nothing = embedlm.Embeddings(**{kind: empty})
        assert model.similarity(nothing, nothing, heads=[kind]).shape == (0, 0)

    def test_training_reads_the_same(self, headed):
        kind, model = headed
        rows, columns, longest = gradients(model)
        part = dict(zip(columns, rows.split(list(columns.values()), dim=1), strict=True))[kind]
        found = output(kind, model, TEXTS, **({"normalize": False} if kind == "dense" else {}))
        if kind == "multi_vector":
            padded = part.unflatten(1, (longest, -1)).numpy()
            part = [row[: len(one)] for row, one in zip(padded, found, strict=True)]
            assert all(not row[len(one) :].any() for row, one in zip(padded, found, strict=True))
        same(kind, found, part if kind == "multi_vector" else part.numpy(), atol=1e-5)

    def test_pairs_have_the_scores_of_the_whole_table(self, headed):
        kind, model = headed
        a, b = output(kind, model, TEXTS), output(kind, model, TEXTS[:2])
        full = HEADS[kind].score(a, b, model.recipe, pairwise=False)
        pairs = HEADS[kind].score(a[:2], b, model.recipe, pairwise=True)
        assert full.shape == (len(TEXTS), 2)
        np.testing.assert_allclose(np.diag(full[:2]), pairs, rtol=1e-5)

    def test_its_output_is_known_by_its_form(self, headed):
        kind, model = headed
        value = output(kind, model, TEXTS)
        assert [name for name, head in HEADS.items() if head.holds(value)] == [kind]
        assert HEADS[kind].finite(value).all()

    def test_a_value_that_is_not_finite_is_found(self, headed):
        kind, model = headed
        value = copy.deepcopy(output(kind, model, TEXTS))
        if kind == "multi_vector":
            value[1][0, 0] = np.nan
        elif kind == "sparse":
            value.data[value.indptr[1]] = np.inf
        else:
            value[1, 0] = -np.inf
        assert HEADS[kind].finite(value).tolist() == [True, False, True, True, True]

    def test_another_recipe_gives_the_same_output(self, headed):
        kind, model = headed
        again = model.with_recipe(model.recipe.override({"pooling.kind": "max"}))
        same(kind, output(kind, model, TEXTS), output(kind, again.with_recipe(model.recipe), TEXTS))


def test_with_recipe_refuses_what_a_loaded_network_cannot_do(tiny_llama):
    model = embedlm.load(tiny_llama, "plain-mean")
    assert model.with_recipe("plain-last").backbone is model.backbone
    with pytest.raises(UnsupportedError, match=r"backbone\.attention.*load it anew"):
        model.with_recipe(model.recipe.override({"backbone.attention": "bidirectional"}))
    assert model.with_recipe(model.recipe.override({"backbone.attention": "causal"}))


def test_with_recipe_keeps_statistics_and_generator(tiny_llama):
    model = embedlm.load(tiny_llama, "static-sif", generator="http://nobody/v1#model")
    model.fit(TEXTS[:2])
    other = model.with_recipe(model.recipe.override({"normalize": True}))
    assert other.readout.statistics is model.readout.statistics
    assert other.generator == model.generator


def test_states_without_a_pooled_segment_give_their_last_token():
    states = PackStates(torch.eye(5), [[1, 2, 3], [4, 5]], [np.array([0, 4, 4]), np.zeros(2)])
    states.segments[1] = np.zeros(2, dtype=np.uint8)
    picked = states.picked(("text",))
    assert picked.index_N.tolist() == [1, 2, 4]
    assert picked.count_B.tolist() == [2, 1]


def test_sparse_tensors_are_compared_as_sparse_vectors(tiny_llama):
    """sentence-transformers' SparseEncoder gives such."""
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    rows = csr_matrix(np.array([[0, 2, 0, 1], [3, 0, 0, 0], [0, 0, 0, 0]], np.float32))
    wanted = model.similarity(rows, rows)
    coo = torch.from_numpy(rows.toarray()).to_sparse()
    for given in (coo, [coo[row] for row in range(3)]):
        np.testing.assert_array_equal(model.similarity(given, rows), wanted)


@pytest.mark.parametrize("compare", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("pairwise", [False, True])
def test_sparse_vectors_of_two_vocabularies_are_not_compared(compare, pairwise):
    narrow, wide = (csr_matrix(np.ones((2, width), np.float32)) for width in (3, 7))
    with pytest.raises(InputError, match="over 3 and 7 terms"):
        compare(narrow, wide, pairwise=pairwise)


def test_what_holds_no_vectors_is_refused(tiny_llama):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    vectors = np.ones((2, 3), np.float32)
    masked = np.ma.array(vectors, mask=[[0, 1, 0], [0, 0, 0]])
    for given, told in (
        (torch.empty(2, 3, device="meta"), "no tensor of vectors"),
        (torch.ones(2, 3, 4).to_sparse(), "no tensor of vectors"),
        (masked, "entries that are masked"),
    ):
        with pytest.raises(InputError, match=told):
            model.similarity(given, vectors)
    with pytest.raises(InputError, match="heads is empty"):
        model.similarity(vectors, vectors, heads=[])


WEIGHTS = {"sparse": {"weights": "token"}}
VECTORS = {"multi_vector": {"projection": "auto"}}


@pytest.fixture
def flag_folder(tiny_llama, tmp_path):
    """A model with FlagEmbedding's two layers of single tokens."""
    folder = shutil.copytree(tiny_llama, tmp_path / "flag")
    width = embedlm.load(tiny_llama, "plain-mean").dim
    torch.save(nn.Linear(width, 1).state_dict(), folder / "sparse_linear.pt")
    torch.save(nn.Linear(width, 8).state_dict(), folder / "colbert_linear.pt")
    return folder


def test_layers_that_a_call_asks_for_are_read_once(flag_folder):
    model = embedlm.load(flag_folder, {"pooling": {"kind": "mean"}})
    first = model.encode(TEXTS, heads=[WEIGHTS, VECTORS])
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (flag_folder / name).unlink()
    again = model.encode(TEXTS, heads=[VECTORS, WEIGHTS])
    same("sparse", first.sparse, again.sparse)
    same("multi_vector", first.multi_vector, again.multi_vector)
    # A projection that is made for one call is not that of the next.
    for width in (3, 4):
        made = {"dense": {"projection": {"width": width, "init": "orthogonal"}}}
        assert model.encode(TEXTS, heads=[made]).shape == (len(TEXTS), width)
    plain = model.encode(TEXTS)
    assert np.array_equal(plain, model.encode(TEXTS, heads=[{"dense": {"projection": "auto"}}]))


def test_recipes_that_follow_each_other_keep_the_layers_of_all(flag_folder):
    model = embedlm.load(flag_folder, {"pooling": {"kind": "mean"}, "heads": [VECTORS]})
    vectors = model.encode(TEXTS).multi_vector
    weighing = model.with_recipe(model.recipe.override({"heads": [WEIGHTS]}))
    weights = weighing.encode(TEXTS).sparse
    back = weighing.with_recipe(model.recipe)
    same("multi_vector", vectors, back.encode(TEXTS).multi_vector)
    same("sparse", weights, back.with_recipe(weighing.recipe).encode(TEXTS).sparse)
