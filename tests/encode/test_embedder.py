"""The façade: forms of input, options, order, duplicates, several heads."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

import embedlm
from embedlm.errors import EmbedLMError, InputError, RecipeError, UnsupportedError

TEXTS = ["plants make food", "light", "the quick brown fox", "light", ""]


@pytest.fixture(scope="module")
def model(model_folder):
    return embedlm.load(model_folder("llama"), recipe="plain-mean")


def test_importing_is_fast_and_without_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import embedlm; "
        "took = time.perf_counter() - start; embedlm.recipes(); "
        "print('torch' in sys.modules, took)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    answers = [run.stdout.split() for run in runs]
    assert {answer[0] for answer in answers} == {"False"}


def test_one_string_gives_one_vector(model):
    one = model.encode("light")
    assert one.shape == (model.dim,)
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, model.encode(["light"])[0], atol=1e-6)


def test_mappings_and_tuples_are_texts_too(model):
    wanted = model.encode(TEXTS)
    np.testing.assert_array_equal(model.encode([{"text": t, "id": 3} for t in TEXTS]), wanted)
    np.testing.assert_array_equal(model.encode(tuple(TEXTS)), wanted)
    np.testing.assert_array_equal(model.encode(t for t in TEXTS), wanted)


def test_an_empty_list_gives_no_rows(model):
    assert model.encode([]).shape == (0, model.dim)


def test_order_is_kept_and_duplicates_are_equal(model):
    vectors = model.encode(TEXTS)
    np.testing.assert_array_equal(vectors[1], vectors[3])
    shuffled = [3, 0, 4, 2, 1]
    again = model.encode([TEXTS[i] for i in shuffled])
    np.testing.assert_allclose(again, vectors[shuffled], atol=1e-5)


def test_sentence_transformers_spellings(model):
    wanted = model.encode(TEXTS, dim=8, normalize=True, show_progress=False)
    found = model.encode(
        TEXTS,
        batch_size=2,
        show_progress_bar=False,
        normalize_embeddings=True,
        truncate_dim=8,
        convert_to_numpy=True,
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert model.get_sentence_embedding_dimension() == tensor.shape[1] == model.dim
    np.testing.assert_allclose(
        model.encode(["light"], prompt="the "), model.encode(["the light"]), atol=1e-6
    )


def test_dim_is_cut_before_normalising(model):
    cut = model.encode(TEXTS, dim=8, normalize=True)
    assert cut.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-5)
    whole = model.encode(TEXTS)[:, :8]
    np.testing.assert_allclose(cut, whole / np.linalg.norm(whole, axis=1)[:, None], atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [
        ("float16", np.float16, 32),
        ("int8", np.int8, 32),
        ("uint8", np.uint8, 32),
        ("binary", np.int8, 4),
        ("ubinary", np.uint8, 4),
    ],
)
def test_precision(model, precision, dtype, width):
    ranges = [[-1] * 32, [1] * 32] if "int8" in precision else None
    found = model.encode(TEXTS, precision=precision, ranges=ranges)
    assert found.dtype == dtype
    assert found.shape == (5, width)


def test_roles_and_instructions(model_folder):
    recipe = {
        "name": "t",
        "prompt": {
            "query": "Instruct: {instruction}\nQuery: {text}{eos}",
            "document": "{text}{eos}",
            "instruction": "answer",
            "roles": {"title": "Title: {text}"},
        },
    }
    model = embedlm.load(model_folder("llama"), recipe=recipe)
    assert model.render("x", role="query").text == ["Instruct: answer\nQuery: x"]
    assert model.render("x", role="query", instruction="").text == ["Instruct: \nQuery: x"]
    assert model.render("x").text == model.render("x", role="document").text == ["x"]
    assert model.render("x", role="title").text == ["Title: x"]
    assert model.render("x").ids[0][-1] == model.tokenizer.eos_token_id
    each = model.encode_query(TEXTS[:2], instruction=["one", "two"])
    np.testing.assert_allclose(each[1], model.encode_query(TEXTS[1], instruction="two"), atol=1e-5)
    with pytest.raises(InputError, match="3 instructions were given for 2 texts"):
        model.encode_query(TEXTS[:2], instruction=["a", "b", "c"])
    with pytest.raises(InputError, match=r"'title'.*Did you mean 'title'"):
        model.encode("x", role="titel")


def test_demonstrations(model_folder):
    model = embedlm.load(model_folder("llama"), recipe="prompteol-icl")
    shots = [{"query": "A cat sits.", "response": "Cat"}]
    text = model.render("x", demonstrations=shots).text[0]
    lead = 'This sentence : "A cat sits." means in one word:"Cat".'
    assert text == lead + 'This sentence : "x." means in one word:"'
    assert (
        model.render("x", demonstrations=[]).text[0] == 'This sentence : "x." means in one word:"'
    )
    with pytest.raises(InputError, match="field 'answer'; allowed: instruct, query, response"):
        model.encode("x", demonstrations=[{"answer": "no"}])
    plain = embedlm.load(model_folder("llama"), recipe="plain-mean")
    with pytest.raises(InputError, match="demonstrations"):
        plain.encode("x", demonstrations=shots)


def test_a_recipes_own_demonstrations_leave_documents_bare(model_folder):
    shots = [{"instruct": "Find </s>", "query": "cats", "response": "Cat"}]
    changes = {"prompt.demonstrations": shots, "prompt.special_tokens_in_text": "refuse"}
    bare = embedlm.load(model_folder("llama"), recipe="bge-icl")
    shown = bare.with_recipe(bare.recipe.override(changes))
    assert "cats" in bare.render("x", "query", demonstrations=shots).text[0]
    np.testing.assert_array_equal(shown.encode_document(TEXTS), bare.encode_document(TEXTS))
    with pytest.raises(InputError, match="refuse"):
        shown.encode_query(TEXTS)
    for recipe, told in (
        ("plain-mean", "has no effect: no template has {demonst"),
        ("bge-icl", "no prompt.demonstration"),
    ):
        changes = {"prompt.demonstrations": shots, "prompt.demonstration": None}
        with pytest.raises(EmbedLMError, match=told):
            shown.with_recipe(embedlm.Recipe.load(recipe).override(changes)).encode_query(TEXTS)
    np.testing.assert_array_equal(shown.encode(TEXTS, prompt="x "), bare.encode(TEXTS, prompt="x "))


def test_several_prompts_are_rendered_apart_and_averaged(model_folder):
    templates = ["One: {text}", "Two: {text}", "Three: {text}"]
    base = {"name": "t", "pooling": {"kind": "last"}}
    model = embedlm.load(model_folder("llama"), recipe={**base, "prompt": {"default": templates}})
    assert [batch.text[0] for batch in model.render("x")] == ["One: x", "Two: x", "Three: x"]
    parts = [
        embedlm.load(model_folder("llama"), recipe={**base, "prompt": {"default": t}}).encode(TEXTS)
        for t in templates
    ]
    np.testing.assert_allclose(model.encode(TEXTS), np.mean(parts, axis=0), atol=1e-5)
    with pytest.raises(UnsupportedError, match="averages several prompts"):
        model.encode(TEXTS, heads=["multi_vector"])


def test_truncation_shortens_the_text_never_the_prompt(model_folder):
    recipe = {"name": "t", "prompt": {"default": 'Say "{text}" in a word:"{eos}'}}
    model = embedlm.load(model_folder("llama"), recipe=recipe)
    long = "the quick brown fox " * 100
    whole = model.render(long, max_length=100_000)
    cut = model.render(long, max_length=40)
    assert len(cut.ids[0]) == 40
    assert cut.truncated == [True]
    names = [embedlm.schema.recipe.SEGMENTS[s] for s in cut.segments[0]]
    prompt = [i for i, s in zip(whole.ids[0], whole.segments[0], strict=True) if s != 4]
    kept = [i for i, name in zip(cut.ids[0], names, strict=True) if name != "text"]
    assert kept == prompt
    assert cut.ids[0][-1] == model.tokenizer.eos_token_id
    with pytest.raises(InputError, match="leaves no room"):
        model.render(long, max_length=5)
    # The model's own limit applies without being asked for.
    assert len(model.render(long).ids[0]) == model.max_length == 200


@given(st.text(max_size=60), st.integers(20, 60))
@settings(max_examples=60)
def test_any_text_fits_its_limit(model_folder, text, limit):
    text = text.encode("utf-8", "ignore").decode()
    recipe = {"name": "t", "prompt": {"default": "Query: {text} means{eos}"}}
    model = embedlm.load(model_folder("llama"), recipe=recipe)
    batch = model.render(text, max_length=limit)
    assert len(batch.ids[0]) == len(batch.segments[0]) <= limit
    assert batch.ids[0][-1] == model.tokenizer.eos_token_id


def test_heads_together_come_from_the_same_states(model_folder):
    model = embedlm.load(model_folder("llama"), recipe="plain-last", lm_head=True)
    found = model.encode(TEXTS, heads=["dense", {"sparse": {"top_k": 7}}, "multi_vector"])
    np.testing.assert_allclose(found.dense, model.encode(TEXTS), atol=1e-5)
    assert isinstance(found.sparse, csr_matrix)
    assert found.sparse.shape == (5, model.backbone.vocab_size)
    assert np.diff(found.sparse.indptr).max() <= 7
    lengths = [len(ids) for ids in model.render(TEXTS).ids]
    assert [len(v) for v in found.multi_vector] == lengths
    np.testing.assert_allclose(np.linalg.norm(found.multi_vector[2], axis=1), 1, atol=1e-5)
    alone = model.encode(TEXTS[2], heads=["sparse"])
    assert alone.sparse.shape[0] == 1


def test_scores(model_folder):
    model = embedlm.load(model_folder("llama"), recipe="plain-last", lm_head=True)
    found = model.encode(TEXTS, heads=["dense", "sparse", "multi_vector"])
    dense = model.similarity(found, found, heads=["dense"])
    unit = found.dense / np.linalg.norm(found.dense, axis=1)[:, None]
    np.testing.assert_allclose(dense, unit @ unit.T, atol=1e-5)
    sparse = model.similarity(found, found, heads=["sparse"])
    np.testing.assert_allclose(sparse, (found.sparse @ found.sparse.T).toarray(), rtol=1e-5)
    late = model.similarity(found, found, heads=["multi_vector"])
    pair = found.multi_vector[0] @ found.multi_vector[2].T
    assert late[0, 2] == pytest.approx(pair.max(1).sum(), rel=1e-5)
    mixed = model.similarity(found, found, heads=["dense", "sparse"], weights=[0.7, 0.3])
    np.testing.assert_allclose(mixed, 0.7 * dense + 0.3 * sparse, rtol=1e-5)
    pairs = model.similarity_pairwise(found, found)
    np.testing.assert_allclose(pairs, np.diag(dense + sparse + late), rtol=1e-4)
    with pytest.raises(InputError, match="no sparse vectors on both sides; there are: dense"):
        model.similarity(found.dense, found.dense, heads=["sparse"])
    with pytest.raises(InputError, match="3 weights were given for 1 heads"):
        model.similarity(found.dense, found.dense, weights=[1, 2, 3])


def test_stream_equals_encode(model, monkeypatch):
    monkeypatch.setattr("embedlm.embedder._STREAM_WINDOW", 3)
    texts = [f"{word} {i}" for i in range(4) for word in ("light", "plants", "fox")]
    found = np.stack(list(model.stream(iter(texts))))
    np.testing.assert_allclose(found, model.encode(texts), atol=1e-5)


def test_static_floors_weigh_tokens(model_folder):
    corpus = ["light light light plants", "light fox", "light committee met"]
    folder = model_folder("llama")
    mean = embedlm.load(folder, recipe="static-mean")
    table = mean.backbone.network.get_input_embeddings().weight.detach().numpy()
    ids = mean.tokenizer("light fox", add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(mean.encode("light fox"), table[ids].mean(0), atol=1e-6)
    tfidf = embedlm.load(folder, recipe="static-tfidf").fit(corpus)
    weights = tfidf.readout.statistics.idf()[ids]
    wanted = (table[ids] * weights[:, None]).sum(0) / weights.sum()
    np.testing.assert_allclose(tfidf.encode("light fox"), wanted, atol=1e-5)
    sif = embedlm.load(folder, recipe="static-sif")
    unfitted = sif.encode(corpus)
    fitted = sif.fit(corpus).encode(corpus)
    assert np.abs(unfitted - fitted).max() > 1e-3
    component = sif.readout.statistics.components_KD
    np.testing.assert_allclose(fitted @ component.T, 0, atol=1e-4)
    alone = np.stack([sif.encode(text) for text in corpus])
    np.testing.assert_allclose(alone, fitted, atol=1e-5)


def test_options_that_are_not_there_are_named(model):
    with pytest.raises(InputError, match=r"no option 'normalise'.*Did you mean 'normalize'"):
        model.encode("x", normalise=True)
    with pytest.raises(RecipeError, match="'densse' is not a head; allowed: dense, sparse"):
        model.encode("x", heads=["densse"])
    with pytest.raises(InputError, match="precision 'int4' is not known; allowed: float32"):
        model.encode("x", precision="int4")
    with pytest.raises(InputError, match="dim is 99; allowed are 1 to 32"):
        model.encode("x", dim=99)


def test_the_embedder_says_what_it_is(model):
    assert "recipe='plain-mean'" in repr(model)
    assert "causal, packed" in repr(model)


def test_a_model_that_was_loaded_is_let_go(tiny_llama, caplog):
    with caplog.at_level("INFO"):
        loaded = [weakref.ref(embedlm.load(tiny_llama, device="cpu")) for _ in range(2)]
        gc.collect()
    assert [one() for one in loaded] == [None, None]
    assert caplog.text.count("no recipe of its own") <= 1
