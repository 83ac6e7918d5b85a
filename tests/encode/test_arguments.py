"""Arguments of a wrong kind, and names that contradict each other, end in our errors."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedlm
from embedlm.errors import InputError, ModelError, RecipeError
from embedlm.schema.arguments import ARGUMENTS, check_arguments
from embedlm.schema.heads import Sparse
from embedlm.search import Passage, SearchIndex

SURROGATE = "\ud800"
LONG = "a" * 5000


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


WRONG_OPTIONS = [
    *(("role", value) for value in (5, ["query"], b"query", SURROGATE)),
    *(("instruction", value) for value in (5, SURROGATE, [SURROGATE], [5], {"a": 1})),
    *(("demonstrations", value) for value in (5, "x", [5], [{"query": 5}], [{"query": SURROGATE}])),
    *(("heads", value) for value in (5, [5], True, b"dense")),
    *(("dim", value) for value in (True, "5", 2.5, 0, -1, 10**30, [1], float("nan"))),
    *(("precision", value) for value in (5, "int4", ["int8"])),
    *(("normalize", value) for value in ("x", 1, 0, "true")),
    *(("batch_tokens", value) for value in ("x", float("inf"), -1, 0, True, 2.5)),
    *(("max_length", value) for value in ("x", True, 2.5, 0, {"query": 5})),
    *(("show_progress", value) for value in ("lines", 1)),
    *(("adapter", value) for value in (5, "none", SURROGATE)),
    *(("prompt", value) for value in (5, SURROGATE, ["a"])),
    *(("prompt_name", value) for value in (5, SURROGATE)),
    *(("truncate_dim", value) for value in ("5", 0, True)),
    *(("batch_size", value) for value in (-1, 0, "x", 2.5)),
    *(("normalize_embeddings", value) for value in ("x", 1)),
    *(("convert_to_tensor", value) for value in ("x", 1)),
    *(("convert_to_numpy", value) for value in ("x", False)),
    *(("device", value) for value in (5, [], "cuda:7", "mps")),
    ("output_value", "token_embeddings"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_OPTIONS)
def test_a_wrong_option_is_named(model, name, value):
    for call in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(InputError) as caught:
            call(["a text"], **{name: value})
        assert name.removesuffix("s") in str(caught.value)
    with pytest.raises(InputError):
        list(model.stream(["a text"], **{name: value}))


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (5, "texts is int"),
        (None, "texts is NoneType"),
        (b"x", "texts is bytes"),
        (np.array("a"), "texts is ndarray"),
        (np.array(5), "texts is ndarray"),
        ({"a", "b"}, "a set, which has no order"),
        ({"foo": 3}, "without the key 'text'"),
        ({"text": 3}, "item 0 is int"),
        ([[10**30]], r"token id 1000.* is not in the vocabulary \(0 to 399\)"),
        ([[10**5000]], "not in the vocabulary"),
        ([[-1]], "token id -1"),
        ([[True]], "item 0 is list"),
        ([["a"]], "item 0 is list"),
        ([np.array("a")], "item 0 is ndarray"),
        ([[1], np.array(2)], "item 1 is ndarray"),
        (SURROGATE, "lone surrogate"),
        ([{"text": SURROGATE}], "lone surrogate"),
    ],
)
def test_texts_of_a_wrong_kind(model, texts, told):
    with pytest.raises(InputError, match=told):
        model.encode(texts)


@pytest.mark.parametrize("texts", [5, None, "ab", {"text": "a"}, b"ab", np.array("a")], ids=repr)
def test_a_stream_refuses_what_is_no_iterable_of_texts_at_once(model, texts):
    with pytest.raises(InputError, match="texts is"):
        model.stream(texts)


TWICE = [
    {"dim": 5, "truncate_dim": 6},
    {"normalize": True, "normalize_embeddings": False},
    {"normalize": False, "normalize_embeddings": True},
    {"role": "query", "prompt_name": "document"},
    {"show_progress": True, "show_progress_bar": False},
    {"sentences": ["b"]},
    {"inputs": ["b"]},
]


@pytest.mark.parametrize("options", TWICE, ids=str)
def test_two_names_of_one_option_must_agree(model, options):
    with pytest.raises(InputError, match=r"name one (option|argument)"):
        model.encode(["a"], **options)


UNUSED = [
    ({"prompt": "x: ", "instruction": "find"}, "leave instruction out"),
    ({"prompt": "", "instruction": ["find"]}, "leave instruction out"),
    ({"prompt": "x: ", "demonstrations": [{"query": "q"}]}, "leave demonstrations out"),
    ({"heads": ["sparse"], "convert_to_tensor": True}, "convert_to_tensor .* give sparse"),
    ({"heads": ["dense", "sparse"], "convert_to_tensor": True}, "give dense, sparse"),
]


@pytest.mark.parametrize(("options", "told"), UNUSED, ids=str)
def test_an_option_that_another_leaves_no_use_for_is_refused(tiny_llama, options, told):
    """The recipe takes instructions, so that one would be dropped without a word."""
    recipe = embedlm.Recipe.load("e5-mistral")
    model = embedlm.load(tiny_llama, recipe, device="cpu", lm_head=True)
    with pytest.raises(InputError, match=told):
        model.encode(["a"], role="query", **options)


@pytest.mark.parametrize("option", [{"instruction": "find"}, {"demonstrations": [{"query": "q"}]}])
def test_what_a_roles_template_has_no_place_for_is_refused(tiny_llama, option):
    """Other roles of the recipe have a place for it."""
    model = embedlm.load(tiny_llama, "bge-icl", device="cpu")
    for call in (model.encode, model.render):
        call(["a"], role="query", **option)
        with pytest.raises(InputError, match=f"this role has no {{{next(iter(option))}}}"):
            call(["a"], role="document", **option)


UNREAD = [
    ({"sparse": {"expand": 5}}, "needs restrict: text"),
    ({"sparse": {"stop_words": "none"}}, "stop_words is read with restrict: text alone"),
    ({"sparse": {"fallback_top_k": 3}}, "fallback_top_k is read with restrict: text alone"),
    ({"sparse": {"over": ["text"]}}, "over is of token weights"),
    ({"sparse": {"weights": "token", "restrict": "text"}}, "restrict is that of the language-"),
    ({"sparse": {"weights": "token", "reduce": "sum"}}, "reduce is that of the language-model"),
    ({"sparse": {"weights": "token", "stop_words": "none"}}, "stop_words is that of the language-"),
    ({"sparse": {"similarity": "cosine"}}, "heads.sparse.similarity says how outputs are compared"),
    ({"multi_vector": {"score": "mean"}}, "multi_vector.score says how outputs are compared"),
    (Sparse(stop_words="none"), "stop_words is read with restrict: text alone"),
]


@pytest.mark.parametrize(("head", "told"), UNREAD, ids=str)
def test_an_option_of_a_head_that_nothing_reads_is_refused(tiny_llama, head, told):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu", lm_head=True)
    with pytest.raises(RecipeError, match=told):
        model.encode(["a"], heads=[head])


def test_two_names_that_agree_are_one(model):
    wanted = model.encode(["a"], dim=5, normalize=True, role="query")
    found = model.encode(
        ["a"], dim=5, truncate_dim=5, normalize=True, normalize_embeddings=True, role="query",
        prompt_name="query",
    )  # fmt: skip
    np.testing.assert_array_equal(found, wanted)


def test_texts_under_another_name_are_told(model):
    with pytest.raises(InputError, match="encode has no option 'queries'"):
        model.encode(queries=["a"])
    with pytest.raises(InputError, match="no texts were given"):
        model.encode(dim=3)


def test_texts_go_by_sentence_transformers_names(model):
    wanted = model.encode(["a", "b"])
    for name in ("sentences", "inputs"):
        np.testing.assert_array_equal(model.encode(**{name: ["a", "b"]}), wanted)
        np.testing.assert_array_equal(
            model.encode_query(**{name: ["a"]}), model.encode_query(["a"])
        )
    with pytest.raises(InputError, match="no texts were given"):
        model.encode()
    with pytest.raises(InputError, match="name one argument"):
        model.encode(sentences=["a"], inputs=["a"])


def test_a_prompt_name_is_the_role_in_every_call(tiny_llama):
    prompt = {"query": "ask: {text}", "document": "read: {text}"}
    model = embedlm.load(tiny_llama, {"prompt": prompt}, device="cpu")
    wanted = model.encode(["a"], role="document")
    np.testing.assert_array_equal(model.encode_query(["a"], prompt_name="document"), wanted)
    np.testing.assert_array_equal(model.encode_query(["a"], role="document"), wanted)


def test_texts_of_arrays_and_tables(model):
    texts = ["plants", "light", ""]
    wanted = model.encode(texts)
    for given_texts in (np.array(texts), np.array(texts, dtype=object), tuple(texts), iter(texts)):
        np.testing.assert_array_equal(model.encode(given_texts), wanted)
    np.testing.assert_allclose(model.encode(np.array(texts)[0]), wanted[0], atol=1e-5)
    pandas = pytest.importorskip("pandas")
    for kind in (object, "string"):
        column = pandas.Series(texts, index=[7, 8, 9], dtype=kind)
        np.testing.assert_array_equal(model.encode(column), wanted)
    arrow = pytest.importorskip("pyarrow")
    for column in (arrow.array(texts), arrow.chunked_array([texts[:1], texts[1:]])):
        np.testing.assert_array_equal(model.encode(column), wanted)
    with pytest.raises(InputError, match="item 1 is NoneType"):
        model.encode(arrow.array(["a", None]))
    for table in (pandas.DataFrame({"text": texts}), arrow.table({"text": texts})):
        with pytest.raises(InputError, match="texts is a table"):
            model.encode(table)
    with pytest.raises(InputError, match="item 1 is"):
        model.encode(pandas.Series(["a", None]))


LOAD = [
    *(("adapters", value) for value in (5, "x", [5], {"a": 1})),
    *(("device", value) for value in ([], 5)),
    *(("dtype", value) for value in (5, None, [])),
    *(("attn", value) for value in (5, None)),
    *(("merge", value) for value in ("foo", 1)),
    *(("lm_head", value) for value in ("foo", None, 1)),
    *(("generator", value) for value in (5, [], {})),
    *(("max_length", value) for value in ("x", True, 0, 2.5, {"query": "x"}, {5: 5}, [5])),
    *(("model", value) for value in (5, True, [], SURROGATE)),
    *(("revision", value) for value in (5, ["a"])),
    *(("token", value) for value in (5, ["a"])),
    *(("cache_dir", value) for value in (5, ["a"])),
    *(("model_kwargs", value) for value in (5, "x", {5: 5})),
]


@pytest.mark.parametrize(("name", "value"), LOAD)
def test_load_names_a_wrong_argument(tiny_llama, name, value):
    given_model = {} if name == "model" else {"model": tiny_llama}
    with pytest.raises(InputError, match=f"^{name} is "):
        embedlm.load(**given_model, **{name: value})


@pytest.mark.parametrize("model", [LONG, "x" * 300, "./" + "x" * 300, "a\0b", "a/b\0", "", "."])
def test_load_refuses_names_that_are_no_paths(model):
    with pytest.raises(ModelError):
        embedlm.load(model)


@pytest.mark.parametrize(
    "recipe",
    [5, [], True, LONG, "a\0b.yaml", SURROGATE, {5: 5}, "x" * 300 + ".yaml",
     {"prompt": {"default": SURROGATE + "{text}"}}, {"prompt": {"roles": {SURROGATE: 5}}},
     {"summary": SURROGATE}],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_recipes_refuse_what_is_none(tiny_llama, model, recipe):
    for call in (embedlm.Recipe.load, model.with_recipe, lambda one: embedlm.load(tiny_llama, one)):
        with pytest.raises(RecipeError):
            call(recipe)


@pytest.mark.parametrize("changes", [5, "x", None, {"summary": SURROGATE}, {5: 5}], ids=ascii)
def test_a_recipe_is_not_overridden_by_what_it_lacks(changes):
    with pytest.raises(RecipeError):
        embedlm.Recipe.load("plain-mean").override(changes)


@pytest.mark.parametrize("folder", [None, 5, True, [], b"x", SURROGATE, "a\0b", LONG, "x" * 300])
def test_saving_refuses_what_is_no_folder(model, folder):
    with pytest.raises(InputError, match=r"^(folder is|the path)"):
        model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ({"license": 5}, "license is 5; give a name or None"),
        ({"license": SURROGATE}, "lone surrogate"),
        ({"base_model": 5}, "base_model is 5"),
        ({"scores": 5}, "scores is 5"),
        ({"scores": float("nan")}, "scores is nan"),
        ({"scores": {"sts": float("nan")}}, "give a number"),
        ({"scores": {"sts": True}}, "give a number"),
        ({"scores": {5: 1.0}}, "give a number"),
        ({"licence": "mit"}, "no option 'licence'. Did you mean 'license'"),
    ],
    ids=repr,
)
def test_saving_refuses_what_no_card_holds(model, tmp_path, card, told):
    for save in (model.save_pretrained, model.push_to_hub):
        with pytest.raises(InputError, match=told):
            save(str(tmp_path / "new"), **card)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("query", 5), ("query", None), ("query", SURROGATE), ("top_k", "x"), ("top_k", 0),
     ("top_k", True), ("top_k", None), ("instruction", 5)],
)  # fmt: skip
def test_a_search_names_a_wrong_argument(model, name, value):
    index = SearchIndex(model, [Passage("a.txt", 1, "a text")])
    with pytest.raises(InputError, match=f"^{name} is "):
        index.search(**{"query": "a", name: value})


def test_the_table_knows_every_argument():
    own = set(inspect.signature(embedlm.Embedder.encode).parameters)
    own -= {"self", "texts", "demonstrations", "ranges", "spellings"}
    assert own <= set(ARGUMENTS["encode"])
    assert set(inspect.signature(embedlm.load).parameters) - {"recipe"} == set(ARGUMENTS["load"])


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers()),
)  # fmt: skip


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(ARGUMENTS["encode"])), value=ANYTHING)
def test_any_value_is_taken_or_refused_in_our_words(name, value):
    if ARGUMENTS["encode"][name].fits(value):
        check_arguments("encode", **{name: value})
        return
    with pytest.raises(InputError) as caught:
        check_arguments("encode", **{name: value})
    assert str(caught.value).startswith(f"{name} is ")
    assert len(str(caught.value)) < 300
