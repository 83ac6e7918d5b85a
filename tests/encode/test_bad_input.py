"""Bad input, in Python and on the command line: a clear error or the documented behaviour.

Full disks, kills and bad records of files are in test_files.py.
"""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

import embedlm
from embedlm.errors import InputError, RecipeError
from tests.command import ROOT


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


def test_vectors_that_cannot_be_are_told():
    for value in (np.nan, np.inf, 1e300):
        with pytest.raises(InputError, match="vector 1 holds NaN or infinity, or a number too"):
            embedlm.quantize(np.array([[1.0, 2.0], [value, 0.0]]), "float32")


def test_token_vectors_of_two_models_are_not_compared(model):
    sides = [[np.ones((2, 4), np.float32)], [np.ones((3, 5), np.float32)]]
    for compare in (model.similarity, model.similarity_pairwise):
        with pytest.raises(InputError, match="token vectors are 4 and 5 wide"):
            compare(*sides)


# -- texts ----------------------------------------------------------------------------------------


def test_an_empty_list_gives_no_rows(model, run, tiny_llama, tmp_path):
    assert model.encode([]).shape == (0, 32)
    found = model.encode([], heads=["dense", "sparse", "multi_vector"])
    assert found.dense.shape == (0, 32)
    assert found.sparse.shape == (0, 400)
    assert found.multi_vector == []
    (tmp_path / "in.txt").write_text("")
    done = run("encode", tmp_path / "in.txt", "-m", tiny_llama, "-o", tmp_path / "out.npy")
    assert done.code == 0, done.err
    assert np.load(tmp_path / "out.npy").shape == (0, 32)


SPECIAL = ("geneol", "metaeol", "bge-m3", "clip", "siglip", "siglip2", "colpali", "colqwen2")
"""Recipes that write first, want more layers, or what only a published checkpoint has, and those
whose documents are images."""


@pytest.mark.parametrize("name", [n for n in embedlm.recipes() if n not in SPECIAL])
@pytest.mark.parametrize("text", ["", " ", "\n", "\x00", "\u200b", "🦊"])
def test_an_empty_string_gives_a_vector(model_folder, name, text):
    architecture = "bert" if name in ("promptbert", "splade") else "llama"
    loaded = embedlm.load(model_folder(architecture), name, device="cpu")
    found = loaded.encode([text, "plants make food"])
    dense = found if isinstance(found, np.ndarray) else found.dense
    if dense is not None:
        assert dense.shape[0] == 2
        assert np.isfinite(dense).all()
    if not isinstance(found, np.ndarray):
        assert found.sparse is None or np.isfinite(found.sparse.data).all()
        assert all(np.isfinite(one).all() for one in found.multi_vector or ())


def test_an_empty_line_gives_a_vector(model, run, tiny_llama, tmp_path):
    (tmp_path / "in.txt").write_text("\nlight\n")
    out = tmp_path / "out.npy"
    run("encode", tmp_path / "in.txt", "-m", tiny_llama, "-r", "plain-mean", "-o", out)
    np.testing.assert_allclose(np.load(out), model.encode(["", "light"]), atol=1e-6)
    done = run("similarity", "", "light", "-m", tiny_llama)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["fine", 5], "item 1 is int .5., not a string"),
        ([None], "item 0 is NoneType"),
        ([b"x"], "item 0 is bytes"),
        ([["a"]], "item 0 is list"),
        ([float("nan")], "item 0 is float"),
        ([{"text": 5}], "item 0 is int"),
        ([{"txt": "a"}], "item 0 is a mapping without the key 'text'"),
        ({"text": None}, "item 0 is NoneType"),
        (5, "texts is int"),
        (None, "texts is NoneType"),
        (b"bytes", "texts is bytes"),
        (["fine", "a\ud800"], "item 1 holds a lone surrogate at character 1"),
        ("\udfff", "item 0 holds a lone surrogate at character 0"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document", "render"])
def test_what_is_no_text_is_named(model, texts, told, method):
    with pytest.raises(InputError, match=told):
        getattr(model, method)(texts)


def test_numpy_strings_are_strings(model):
    given = np.array(["plants make food", "light"])
    np.testing.assert_array_equal(model.encode(given), model.encode(given.tolist()))


def test_what_is_no_text_is_named_in_a_stream(model):
    vectors = model.stream(["light", 5])
    with pytest.raises(InputError, match="item 1 is int"):
        list(vectors)


def test_bytes_that_are_no_text_on_the_command_line(tiny_llama):
    done = subprocess.run(
        [sys.executable, "-m", "embedlm.cli", "similarity", b"a\xff", "b", "-m", tiny_llama],
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    told = done.stderr.decode()
    assert told.count("\n") == 1
    assert "is not valid UTF-8" in told


def test_a_text_of_100_000_tokens_is_cut(model, run, tiny_llama, tmp_path):
    long = "fox " * 100_000
    vector = model.encode(long)
    assert np.isfinite(vector).all()
    np.testing.assert_allclose(vector, model.encode("fox " * 1_000), atol=1e-6)
    batch = model.render([long, "fox"])
    assert len(batch.ids[0]) == model.max_length
    assert batch.truncated == [True, False]
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": long}) + "\n")
    out = tmp_path / "out.npy"
    options = ("-m", tiny_llama, "-r", "plain-mean", "-o", out)
    assert run("encode", tmp_path / "in.jsonl", *options).code == 0
    np.testing.assert_allclose(np.load(out)[0], vector, atol=1e-6)


def test_it_is_told_once_that_texts_are_shortened(tiny_llama, caplog):
    own = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    long = "light " * 5000
    own.encode(["light", long], max_length=20)
    own.encode(["light"])
    assert "shortened" not in caplog.text
    own.encode(["light", long])
    own.with_recipe("plain-last").encode([long])
    assert caplog.text.count("is shortened") == 1


def test_a_prompt_without_room_for_a_text_is_refused(model_folder, run):
    folder = model_folder("llama")
    loaded = embedlm.load(folder, "prompteol", device="cpu")
    told = "leaves no room for the text within max_length 5; give a larger max_length"
    with pytest.raises(InputError, match=told):
        loaded.encode(["light"], max_length=5)
    options = ("-m", folder, "-r", "prompteol", "--max-length", "5")
    assert told in run("render", "light", *options).one_line()


# -- options --------------------------------------------------------------------------------------


def _above_zero(name):
    """Return what Python and what the command line say of 0."""
    option = name.replace("_", "-")
    return f"{name} is 0; give a number above 0|--{option}: '0' is not allowed; give a whole number"


OPTIONS = [
    ({"dim": 0}, _above_zero("dim")),
    ({"dim": 33}, "dim is 33; allowed are 1 to 32"),
    ({"precision": "float8"}, "precision 'float8' is not known; allowed: float32"),
    ({"role": "qurey"}, "role 'qurey' is not defined.*Did you mean 'query'"),
    ({"heads": "dence"}, "'dence' is not a head; allowed: dense, sparse, multi_vector"),
    ({"heads": "dense,dense"}, "heads names one kind twice"),
    ({"heads": "{sparse: {topk: 5}}"}, "topk: unknown field.*Did you mean 'top_k'"),
    ({"heads": "{sparse: {top_k: 0}}"}, "top_k: Input should be greater than 0"),
    ({"max_length": 0}, _above_zero("max_length")),
    ({"batch_tokens": 0}, _above_zero("batch_tokens")),
    ({"instruction": "Find"}, r"has no \{instruction\}; give none"),
]


@pytest.mark.parametrize(("options", "told"), OPTIONS)
def test_options_that_cannot_be_are_refused(model, run, tiny_llama, tmp_path, options, told):
    ours = dict(options)
    if "heads" in ours:
        ours["heads"] = yaml.safe_load(f"[{ours['heads']}]")
    with pytest.raises((InputError, RecipeError), match=told):
        model.encode(["light"], **ours)
    (tmp_path / "in.txt").write_text("light\n")
    line = [item for name, v in options.items() for item in (f"--{name.replace('_', '-')}", v)]
    options = ("-m", tiny_llama, "-r", "plain-mean", "-o", tmp_path / "out.npy")
    done = run("encode", tmp_path / "in.txt", *options, *line)
    assert re.search(told, done.one_line())
    assert not (tmp_path / "out.npy").exists()
    assert not (tmp_path / "out.npy.part").exists()


def test_options_of_python_alone(model):
    for options, told in (
        ({"heads": []}, "heads is empty"),
        ({"instruction": ["a", "b"]}, "2 instructions were given for 1 texts"),
        ({"instruction": [5]}, "instruction 0 is int"),
        ({"demonstrations": "x"}, "demonstrations: give a list"),
        ({"demonstrations": [{"query": 5}]}, "demonstration 0 is not a mapping of strings"),
        ({"demonstrations": [{"query": "a"}]}, "no {demonstrations}; give none"),
        ({"dimension": 5}, "encode has no option 'dimension'"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            model.encode(["light"], **options)


# -- recipes --------------------------------------------------------------------------------------

RECIPES = [
    ("prompt: {default: no slot}", r"the template 'no slot' has no \{text\}"),
    ("prompt: {default: ''}", r"has no \{text\}"),
    ("prompt: {default: []}", "at least one|give at least one"),
    ("prompt: {default: ['{text}', x]}", r"the template 'x' has no \{text\}"),
    ("prompt: {query: '{txt}'}", r"\{txt\} is not a slot.*Did you mean 'text'"),
    ("prompt: {default: '{text} {'}", "a lone '{' in the template"),
    ("prompt: {default: '{?instruction}{text}'}", "is not closed by"),
    ("prompt: {default: [{role: user, content: hello}]}", r"has no \{text\}"),
    ("prompt: {default: [{role: robot, content: '{text}'}]}", "robot"),
    ("pooling: {kind: median}", "pooling.kind: .*'last', 'mean'.*given 'median'"),
    ("pooling: {kidn: mean}", "pooling.kidn: unknown field.*Did you mean 'kind'"),
    ("poling: {kind: mean}", "poling: unknown field.*Did you mean 'pooling'"),
    ("pooling: {over: [txet]}", "txet"),
    ("pooling: mean", "pooling"),
    ("heads: [dens]", "'dens' is not a head.*Did you mean 'dense'"),
    ("heads: []", "heads"),
    ("backbone: {attention: sideways}", "backbone.attention: .*given 'sideways'"),
    ("normalize: perhaps", "normalize: "),
    ("prompt: {max_length: many}", "max_length"),
    ("prompt: {max_length: -5}", "max_length"),
    ("- a list", "holds a? ?list, not a mapping"),
    ("a: [broken", "line 1: not valid YAML"),
    ("", "holds nothing, not a mapping"),
]


@pytest.mark.parametrize(("text", "told"), RECIPES)
def test_recipes_that_cannot_be_are_refused(refused, run, tiny_llama, tmp_path, text, told):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    refused(RecipeError, told, tiny_llama, str(file))
    assert re.search(told, run("recipes", "show", file).one_line())


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("promteol", "'promteol' is no recipe.*Did you mean 'prompteol'.*embedlm recipes"),
        ("", "'' is no recipe|-r: the name is empty"),
        ("none/mine.yaml", "cannot read the recipe 'none/mine.yaml'"),
        (".", "cannot read the recipe 'embedlm.yaml'"),
    ],
)
def test_recipes_that_are_not_there(refused, tiny_llama, recipe, told):
    refused(RecipeError, told, tiny_llama, recipe)


def test_overrides_that_cannot_be_are_refused(run, tiny_llama):
    recipe = embedlm.Recipe.load("plain-mean")
    for field, value, told in (
        ("pooling.kind", "median", "given 'median'"),
        ("pooling.knd", "mean", "pooling.knd: unknown field"),
        ("pooling.kind.more", "x", "'kind' has no fields below it"),
        ("prompt.default", "x", "has no {text}"),
    ):
        with pytest.raises(RecipeError, match=re.escape(told)):
            recipe.override({field: value})
        options = ("-m", tiny_llama, "-r", "plain-mean", "--set", f"{field}={value}")
        assert told in run("render", "light", *options).one_line()


# -- models ---------------------------------------------------------------------------------------
