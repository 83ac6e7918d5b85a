"""NaN and infinity never leave the package as a vector or a score."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import embedlm
from embedlm.bulk import encode_file
from embedlm.errors import InputError, ModelError, NotFiniteError, RecordError
from embedlm.jobs.json_files import json_text
from embedlm.readout.similarity import normalize
from embedlm.readout.term_weights import select_terms
from embedlm.readout.token_layers import token_weights
from embedlm.schema.heads import Sparse
from embedlm.search import ExactStore, Passage, SearchIndex, fuse

HEADS = ("dense", "sparse", "multi_vector")
BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(scope="module")
def overflowing(tiny_llama, tmp_path_factory):
    """Return the folder of a model whose states overflow float16, and fit float32."""
    folder = tmp_path_factory.mktemp("overflowing") / "model"
    network = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        for layer in network.model.layers:
            layer.mlp.down_proj.weight.mul_(3e7)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(overflowing):
    return embedlm.load(overflowing, "plain-mean", dtype="float16", device="cpu", lm_head=True)


@pytest.mark.parametrize("head", HEADS)
def test_no_head_gives_nan(model, head):
    with pytest.raises(NotFiniteError, match=r"text 0 \('plants'\) and 1 more.*float16.*float32"):
        model.encode(["plants", "make food"], heads=head)


SPARSE = [{}, {"top_k": 1}, {"restrict": "text"}, {"restrict": "text", "expand": 5}]


@pytest.mark.parametrize("options", SPARSE, ids=str)
def test_no_choice_of_terms_hides_nan(model, options):
    with pytest.raises(NotFiniteError, match=r"text 0 \('plants'\) and 1 more"):
        model.encode(["plants", "make food"], heads=[{"sparse": options}])


@pytest.mark.parametrize("wrong", BAD[:2])
def test_no_choice_hides_one_term_or_token(wrong):
    w_V = np.array([0.0, 3.0, wrong, 2.0], np.float32)
    words = np.array([1, 3])
    for options in (Sparse(), Sparse(top_k=1), Sparse(restrict="text", expand=1)):
        ids, weights = select_terms(w_V, words if options.expand else None, options, words)
        assert (ids.tolist(), np.isfinite(weights).any()) == ([2], False)
    rows = token_weights(w_V, [np.array([7, 8, 9, 9])], 1, ())
    ids, weights = rows[0]
    assert (ids.tolist(), np.isfinite(weights).any()) == ([9], False)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_no_precision_hides_nan(model, precision):
    ranges = np.vstack([-np.ones(32), np.ones(32)]) if "int8" in precision else None
    for call in (
        lambda **options: model.encode("plants", **options),
        lambda **options: list(model.stream(["plants"], **options)),
    ):
        with pytest.raises(ModelError, match="NaN or infinity for text 0"):
            call(precision=precision, ranges=ranges)


def test_the_same_model_in_float32_gives_vectors(overflowing):
    model = embedlm.load(overflowing, "plain-mean", dtype="float32", device="cpu")
    assert np.isfinite(model.encode(["plants"])).all()


def test_the_error_holds_the_places_of_all_such_texts(tiny_llama):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    words = ["plants", "light", "food"]
    (bad,) = model.render("light").ids
    network = model.backbone.network
    with torch.no_grad():
        table = network.get_input_embeddings().weight
        kept = table[bad[-1]].clone()
        table[bad[-1]] = float("nan")
        try:
            with pytest.raises(NotFiniteError, match=r"text 1 .'light'. and 1 more") as caught:
                model.encode([*words, "light"])
        finally:
            table[bad[-1]] = kept
    assert caught.value.rows == (1, 3)


def test_a_job_sets_such_texts_aside(model, tmp_path):
    (tmp_path / "in.txt").write_text("plants\nlight\n")
    with pytest.raises(RecordError, match=r"in\.txt:1: the model gave NaN or infinity"):
        encode_file(model, tmp_path / "in.txt", tmp_path / "out.npy")
    rejects = tmp_path / "bad.jsonl"
    report = encode_file(model, tmp_path / "in.txt", tmp_path / "o2.npy", rejects=rejects)
    assert (report.rows, report.rejected) == (0, 2)


def test_a_command_prints_no_nan(run, overflowing):
    line = ("-m", overflowing, "-r", "plain-mean", "--dtype", "float16", "--json")
    done = run("similarity", "plants", "light", *line)
    assert done.code == 2
    assert "NaN or infinity" in done.one_line()
    assert done.out == ""


# -- scores ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fine(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_refuses_vectors_that_are_not_finite(fine, bad, similarity):
    model = fine.with_recipe(fine.recipe.override({"similarity": similarity}))
    good, wrong = np.ones((2, 3)), np.ones((2, 3))
    wrong[1, 2] = bad
    for call in (model.similarity, model.similarity_pairwise):
        with pytest.raises(InputError, match=r"a\[1\] holds NaN or infinity"):
            call(wrong, good)
        with pytest.raises(InputError, match=r"b\[1\] holds NaN or infinity"):
            call(good, torch.tensor(wrong))
        with pytest.raises(InputError, match="weights is"):
            call(good, good, weights=[bad])


def test_similarity_of_other_heads_refuses_nan(fine):
    tokens = [np.ones((2, 3), np.float32), np.full((1, 3), np.nan, np.float32)]
    with pytest.raises(InputError, match=r"a\[1\] holds NaN"):
        fine.similarity(tokens, tokens)


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "manhattan"])
def test_scores_beyond_float32_are_refused(fine, similarity):
    model = fine.with_recipe(fine.recipe.override({"similarity": similarity}))
    large = np.full((1, 8), 3e38, np.float32)
    for call in (model.similarity, model.similarity_pairwise):
        with pytest.raises(InputError, match=r"the score \[0(, 0)?\] is beyond float32"):
            call(large, -large)


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e15, 1e25, 3e38])
def test_a_cosine_does_not_depend_on_the_size(fine, size):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (3, 8)), rng.uniform(-1, 1, (4, 8))
    wanted = fine.similarity(a, b)
    np.testing.assert_allclose(fine.similarity(a * size, b), wanted, atol=1e-5)
    lengths = np.linalg.norm(normalize(a * size), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_a_search_refuses_what_is_not_finite(model, fine):
    with pytest.raises(ModelError, match="NaN or infinity"):
        SearchIndex(model, [Passage("a.txt", 1, "plants")])
    store = ExactStore(similarity="dot")
    with pytest.raises(InputError, match="row 1"):
        store.add(["a", "b"], {"dense": np.array([[1.0, 2], [np.nan, 1]])})
    store.add(["a"], {"dense": np.array([[3e38, 3e38]])})
    with pytest.raises(InputError, match="NaN or infinity"):
        store.search("dense", np.array([[np.inf, 1]]))
    with pytest.raises(InputError, match="beyond float32"):
        store.search("dense", np.array([[3e38, 3e38]]))
    for runs, weights in (([{"a": float("nan")}], None), ([{"a": 1.0}], [float("inf")])):
        with pytest.raises(InputError, match="NaN or infinity"):
            fuse(runs, weights=weights)


# -- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD)
def test_json_has_no_nan(bad):
    text = json_text({"a": bad, "b": [1.5, bad, {"c": bad}], "d": "NaN"})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None, "b": [1.5, None, {"c": None}], "d": "NaN",
    }  # fmt: skip


def test_a_line_with_nan_is_no_record(fine, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a", "score": NaN}\n{"text": "b", "score": 1}\n')
    with pytest.raises(RecordError, match=r"in\.jsonl:1: not valid JSON: NaN"):
        encode_file(fine, tmp_path / "in.jsonl", tmp_path / "o.jsonl", keep=("score",))
