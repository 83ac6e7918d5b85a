"""int8 and uint8 by fitted ranges, and packed bits compared by Hamming distance."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import embedlm
from embedlm.bulk.files import encode_file
from embedlm.encode.precision import PRECISIONS, quantize
from embedlm.errors import InputError, ModelError
from embedlm.readout.quantized import dequantize
from embedlm.search import ExactStore
from tests.command import sentences

TEXTS = sentences(12, seed=1)
CORPUS = sentences(200, seed=2)
INTEGERS = ["int8", "uint8"]
BITS = ["binary", "ubinary"]


@pytest.fixture
def model(tiny_llama):
    """Return a model without ranges, whose vectors have length 1."""
    return embedlm.load(tiny_llama, {"name": "unit", "normalize": True}, device="cpu")


@pytest.fixture(scope="module")
def fitted(tiny_llama):
    model = embedlm.load(tiny_llama, {"name": "unit", "normalize": True}, device="cpu")
    return model.fit_ranges(CORPUS)


# -- ranges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", INTEGERS)
@pytest.mark.parametrize("texts", [TEXTS[0], TEXTS[:3], CORPUS], ids=["one", "few", "many"])
def test_texts_are_never_their_own_ranges(model, precision, texts):
    with pytest.raises(InputError, match=rf"{precision} needs the range .* fit_ranges"):
        model.encode(texts, precision=precision)


@pytest.mark.parametrize("precision", INTEGERS)
def test_a_texts_integers_depend_on_itself_alone(fitted, precision):
    together = fitted.encode(TEXTS, precision=precision)
    for text, row in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(fitted.encode(text, precision=precision), row)
    streamed = list(fitted.stream(iter(TEXTS), precision=precision))
    np.testing.assert_array_equal(streamed, together)
    by_role = fitted.encode_document(TEXTS, precision=precision)
    np.testing.assert_array_equal(by_role, together)


@pytest.mark.parametrize("precision", INTEGERS)
def test_fitted_ranges_are_those_of_the_corpus(fitted, precision):
    wanted = quantize(fitted.encode(TEXTS), precision, calibration=fitted.encode(CORPUS))
    np.testing.assert_array_equal(fitted.encode(TEXTS, precision=precision), wanted)
    assert len(np.unique(wanted)) > 100


def test_ranges_of_a_call(model):
    vectors = model.encode(CORPUS)
    ranges = np.vstack([vectors.min(axis=0), vectors.max(axis=0)])
    found = model.encode(TEXTS, precision="int8", ranges=ranges)
    np.testing.assert_array_equal(found, quantize(model.encode(TEXTS), "int8", ranges))
    np.testing.assert_array_equal(
        found, model.encode(TEXTS, precision="int8", ranges=ranges.tolist())
    )
    score = model.similarity(found, model.encode(TEXTS, precision="uint8", ranges=ranges))
    np.testing.assert_allclose(
        score, model.similarity(model.encode(TEXTS), model.encode(TEXTS)), atol=0.05
    )


@pytest.mark.parametrize(
    ("ranges", "told"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\); give \(2, 32\)"),
        (np.zeros((32, 2)), r"shape \(32, 2\)"),
        (np.zeros(32), r"shape \(32,\)"),
        (np.full((2, 32), np.nan), "NaN or infinity for dimension 0"),
        (np.full((2, 32), np.inf), "NaN or infinity"),
        (np.vstack([np.ones(32), np.zeros(32)]), "minimum above the maximum for dimension 0"),
        (np.float32([[-3e38] * 32, [3e38] * 32]), "too far apart for float32"),
        ("wide", "no array of numbers"),
        ([[1], [1, 2]], "no array of numbers"),
        ([["a"] * 32] * 2, "no array of numbers"),
    ],
)  # fmt: skip
def test_ranges_that_cannot_be_are_refused(model, ranges, told):
    with pytest.raises(InputError, match=told):
        model.encode(TEXTS, precision="int8", ranges=ranges)
    with pytest.raises(InputError, match=told):
        quantize(model.encode(TEXTS), "uint8", ranges)


def test_ranges_for_what_has_none_are_refused(model):
    with pytest.raises(InputError, match="ranges were given, and precision is ubinary"):
        model.encode(TEXTS, precision="ubinary", ranges=np.zeros((2, 32)))


def test_a_dimension_that_never_changes(model):
    ranges = np.vstack([np.full(32, -1.0), np.full(32, 1.0)])
    ranges[:, 5] = 0.25
    found = model.encode(TEXTS, precision="uint8", ranges=ranges)
    assert set(found[:, 5]) <= {0}
    assert dequantize(found, "uint8", ranges)[0, 5] == np.float32(0.25)


@pytest.mark.parametrize("texts", [[], TEXTS[0], [TEXTS[0]], [TEXTS[0], TEXTS[0]]], ids=repr)
def test_ranges_are_not_fitted_on_one_vector(model, texts):
    with pytest.raises(InputError, match="tell no ranges"):
        model.fit_ranges(texts)
    with pytest.raises(InputError, match="no option 'precision'"):
        model.fit_ranges(CORPUS, precision="int8")


def test_each_width_has_ranges_of_its_own(fitted):
    model = copy.deepcopy(fitted)
    with pytest.raises(InputError, match=r"width 8 and length 1.*fit_ranges\(texts, dim=8\)"):
        model.encode(TEXTS, dim=8, precision="int8")
    with pytest.raises(InputError, match=r"fit_ranges\(texts, normalize=False\)"):
        model.encode(TEXTS, normalize=False, precision="int8")
    model.fit_ranges(CORPUS, dim=8)
    wanted = quantize(model.encode(TEXTS, dim=8), "int8", calibration=model.encode(CORPUS, dim=8))
    np.testing.assert_array_equal(model.encode(TEXTS, dim=8, precision="int8"), wanted)
    whole = fitted.encode(TEXTS, precision="int8")
    np.testing.assert_array_equal(model.encode(TEXTS, precision="int8"), whole)
    # What is only cut has the ranges of its first dimensions.
    cut = model.encode(TEXTS, truncate_dim=8, precision="int8")
    np.testing.assert_array_equal(cut, whole[:, :8])


@pytest.mark.parametrize("unit", [True, False])
def test_a_recipe_that_cuts_vectors_has_ranges_too(tiny_llama, unit, tmp_path):
    recipe = {"name": "cut", "normalize": unit, "dim": 8}
    model = embedlm.load(tiny_llama, recipe, device="cpu").fit_ranges(CORPUS)
    wanted = quantize(model.encode(TEXTS), "int8", calibration=model.encode(CORPUS))
    np.testing.assert_array_equal(model.encode(TEXTS, precision="int8"), wanted)
    np.testing.assert_array_equal(model.encode(TEXTS, dim=8, precision="int8"), wanted)
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    encode_file(model, tmp_path / "in.txt", tmp_path / "out.npy", precision="int8")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)
    narrow = model.encode(TEXTS, dim=5, precision="int8", normalize=False) if not unit else wanted
    np.testing.assert_array_equal(narrow, wanted[:, : narrow.shape[1]])
    for other in ({"dim": 16}, {"truncate_dim": 8}) if unit else ({"dim": 16},):
        with pytest.raises(InputError, match="none for vectors of width"):
            model.encode(TEXTS, precision="int8", **other)


def test_ranges_are_saved_copied_and_pickled(fitted, tmp_path):
    fitted.fit_ranges(CORPUS, dim=8)
    wanted = fitted.encode(TEXTS, precision="int8")
    fitted.save_pretrained(tmp_path / "saved")
    saved = embedlm.load(tmp_path / "saved", device="cpu")
    for model in (saved, pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(model.encode(TEXTS, precision="int8"), wanted)
        narrow = fitted.encode(TEXTS, dim=8, precision="int8")
        np.testing.assert_array_equal(model.encode(TEXTS, dim=8, precision="int8"), narrow)
    shorter = embedlm.load(tmp_path / "saved", device="cpu", max_length=100)
    np.testing.assert_array_equal(shorter.encode(TEXTS, precision="int8"), wanted)
    (tmp_path / "saved" / "ranges.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"ranges\.safetensors cannot be read"):
        embedlm.load(tmp_path / "saved", device="cpu")


def test_ranges_belong_to_the_vectors_they_were_fitted_on(fitted, tmp_path):
    other = {"name": "other", "pooling": {"kind": "mean"}, "normalize": True}
    same = fitted.with_recipe(fitted.recipe.override({"name": "renamed", "similarity": "dot"}))
    np.testing.assert_array_equal(
        same.encode(TEXTS, precision="int8"), fitted.encode(TEXTS, precision="int8")
    )
    fitted.save_pretrained(tmp_path / "saved")
    for model in (fitted.with_recipe(other), embedlm.load(tmp_path / "saved", other)):
        with pytest.raises(InputError, match="fitted: none"):
            model.encode(TEXTS, precision="int8")


def test_counting_words_anew_takes_the_ranges_back(tiny_llama):
    model = embedlm.load(tiny_llama, "static-sif", device="cpu").fit_ranges(CORPUS)
    model.encode(TEXTS, precision="int8")
    model.fit(CORPUS)
    with pytest.raises(InputError, match="fitted: none"):
        model.encode(TEXTS, precision="int8")


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [
        ("float32", np.float32, 32),
        (None, np.float32, 32),
        ("float16", np.float16, 32),
        ("int8", np.int8, 32),
        ("uint8", np.uint8, 32),
        ("binary", np.int8, 4),
        ("ubinary", np.uint8, 4),
    ],
)
def test_no_texts_give_no_rows_of_the_right_kind(model, precision, dtype, width):
    found = model.encode([], precision=precision)
    assert (found.dtype, found.shape) == (dtype, (0, width))
    assert model.encode([], precision=precision, dim=8).shape == (0, 1 if width == 4 else 8)


def test_options_of_dense_vectors_are_refused_without_them(tiny_llama):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu", lm_head=True)
    for options in ({"precision": "int8"}, {"precision": "float16"}, {"dim": 4},
                    {"normalize": False}):  # fmt: skip
        for heads in ("sparse", ["sparse", "multi_vector"]):
            with pytest.raises(InputError, match="changes dense vectors"):
                model.encode(TEXTS, heads=heads, **options)
    both = model.encode(TEXTS, heads=["dense", "multi_vector"], precision="ubinary")
    assert both.dense.dtype == np.uint8
    assert both.multi_vector[0].dtype == np.float32


def test_few_vectors_are_not_their_own_ranges():
    vectors = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    assert quantize(vectors, "int8").shape == (100, 4)
    with pytest.raises(InputError, match="which 99 vectors cannot tell"):
        quantize(vectors[:99], "int8")


def test_small_numbers_are_quantised_where_numpy_raises_for_them():
    vectors = np.full((100, 2), 1e-42, np.float32)
    vectors[0] = 0
    with np.errstate(all="raise"):
        for precision in PRECISIONS:
            assert len(quantize(vectors, precision)) == 100


# -- comparing ------------------------------------------------------------------------------------


def hamming(a, b, precision):
    """Return the number of bits that differ, (n, m)."""
    a, b = (np.asarray(x).astype(np.int16) + (128 if precision == "binary" else 0) for x in (a, b))
    a, b = (np.unpackbits(x.astype(np.uint8), axis=1) for x in (a, b))
    return (a[:, None] != b[None]).sum(axis=2)


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("dim", [None, 24, 8, 5])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_bits_are_compared_by_hamming_distance(model, precision, dim, similarity):
    model = model.with_recipe(model.recipe.override({"similarity": similarity}))
    codes = model.encode(TEXTS, precision=precision, dim=dim)
    distance = hamming(codes, codes, precision)
    found = model.similarity(codes, codes)
    order = np.argsort(-found, axis=1, kind="stable")
    np.testing.assert_array_equal(order, np.argsort(distance, axis=1, kind="stable"))
    if similarity == "cosine":
        np.testing.assert_array_equal(found, (1 - 2 * distance / (dim or 32)).astype(np.float32))
    pairs = model.similarity_pairwise(codes, codes[::-1])
    np.testing.assert_allclose(pairs, np.diagonal(found[:, ::-1]), atol=1e-5)


@pytest.mark.parametrize("precision", BITS)
def test_codes_know_what_they_are_after_a_file_a_pickle_and_a_tensor(model, precision, tmp_path):
    codes = model.encode(TEXTS, precision=precision)
    wanted = model.similarity(codes, codes)
    np.save(tmp_path / "codes.npy", codes)
    tensor = model.encode(TEXTS, precision=precision, convert_to_tensor=True)
    for other in (
        np.load(tmp_path / "codes.npy"),
        pickle.loads(pickle.dumps(codes)),
        tensor,
        np.stack(list(model.stream(TEXTS, precision=precision))),
        list(codes),
        embedlm.Embeddings(dense=codes),
        codes.copy(),
    ):
        np.testing.assert_array_equal(model.similarity(other, codes), wanted)
    np.testing.assert_array_equal(model.similarity(codes[0], codes)[0], wanted[0])
    narrow = pickle.loads(pickle.dumps(model.encode(TEXTS, precision=precision, dim=8)))
    assert model.similarity(narrow, narrow).max() == 1


def test_what_cannot_be_told_is_refused(model):
    for width in (1, 3, 16):
        unknown = np.ones((2, width), np.uint8)
        with pytest.raises(InputError, match="cannot be told whether"):
            model.similarity(unknown, unknown)
        with pytest.raises(InputError, match="cannot be told whether"):
            ExactStore().add(["a", "b"], {"dense": unknown})
    with pytest.raises(InputError, match="by their ranges alone"):
        model.similarity(np.ones((2, 32), np.int8), np.ones((2, 32), np.int8))


@pytest.mark.parametrize("precision", INTEGERS)
def test_integers_are_compared_as_what_they_stand_for(fitted, precision):
    vectors, codes = fitted.encode(CORPUS), fitted.encode(CORPUS, precision=precision)
    wanted = fitted.similarity(vectors[:9], vectors)
    np.testing.assert_allclose(fitted.similarity(codes[:9], codes), wanted, atol=0.02)
    bare = np.array(codes)  # as from a file: the model's ranges are taken
    np.testing.assert_allclose(fitted.similarity(bare[:9], bare), wanted, atol=0.02)


@pytest.mark.parametrize("precision", [*INTEGERS, *BITS])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_store_compares_what_codes_stand_for(fitted, precision, similarity):
    codes = fitted.encode(TEXTS, precision=precision)
    store = ExactStore(similarity=similarity)
    store.add([f"{i:02}" for i in range(len(TEXTS))], {"dense": codes})
    model = fitted.with_recipe(fitted.recipe.override({"similarity": similarity}))
    scores = model.similarity(codes[:1], codes)[0]
    found = store.search("dense", codes[:1], len(TEXTS))[0]
    np.testing.assert_allclose([one.score for one in found], np.sort(scores)[::-1], atol=1e-4)
    if precision in BITS:
        nearest = np.argsort(hamming(codes[:1], codes, precision)[0], kind="stable")
        assert [int(one.id) for one in found] == nearest.tolist()


FINITE = st.floats(-100, 100, width=32)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(vectors=arrays(np.float32, (4, 6), elements=FINITE), precision=st.sampled_from(INTEGERS))
def test_integers_stand_for_numbers_within_a_step(vectors, precision):
    ranges = np.vstack([vectors.min(axis=0), vectors.max(axis=0)])
    codes = quantize(vectors, precision, ranges)
    steps = (ranges[1] - ranges[0]) / 255
    far = np.abs(dequantize(codes, precision, ranges) - vectors)
    assert (far <= steps + 1e-4).all()
    for row, code in zip(vectors, codes, strict=True):
        np.testing.assert_array_equal(quantize(row[None], precision, ranges)[0], code)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    vectors=st.integers(1, 20).flatmap(lambda d: arrays(np.float32, (3, d), elements=FINITE)),
    precision=st.sampled_from(BITS),
)
def test_bits_stand_for_signs(vectors, precision):
    codes = quantize(vectors, precision)
    signs = dequantize(codes, precision, dim=vectors.shape[1])
    np.testing.assert_array_equal(signs, np.where(vectors > 0, 1, -1))
