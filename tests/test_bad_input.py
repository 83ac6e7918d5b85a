"""Bad input, in Python and on the command line: a clear error or the documented behaviour.

Full disks, kills and bad records of files are in test_files.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

import embedlm
from embedlm.errors import EmbedLMError, InputError, ModelError, RecipeError, UnsupportedError
from tests.command import ROOT, server


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the command line in a fork."""

    def run(*arguments, **how):
        return server()(*arguments, folder=tmp_path, **how)

    return run


@pytest.fixture
def refused(run):
    """Return a function that checks a refusal by `embedlm.load` and by the command line."""

    def refused(kind, told, model, recipe="plain-mean", **options):
        with pytest.raises(kind, match=told) as caught:
            embedlm.load(model, recipe, **options)
        assert isinstance(caught.value, EmbedLMError)
        line = [item for name, value in options.items() for item in (f"--{name}", value)]
        line += [] if recipe is None else ["-r", recipe]
        assert re.search(told, run("similarity", "a", "b", "-m", model, *line).one_line())

    return refused


@pytest.fixture
def copy(tiny_llama, tmp_path):
    """Return a copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


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


@pytest.mark.parametrize("name", [n for n in embedlm.recipes() if n not in ("geneol", "metaeol")])
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
        assert np.isfinite(found.sparse.data).all()


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
    assert "item 0 holds a lone surrogate at character 1" in told


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


def test_a_prompt_without_room_for_a_text_is_refused(model_folder, run):
    folder = model_folder("llama")
    loaded = embedlm.load(folder, "prompteol", device="cpu")
    told = "leaves no room for the text within max_length 5; give a larger max_length"
    with pytest.raises(InputError, match=told):
        loaded.encode(["light"], max_length=5)
    options = ("-m", folder, "-r", "prompteol", "--max-length", "5")
    assert told in run("render", "light", *options).one_line()


# -- options --------------------------------------------------------------------------------------

OPTIONS = [
    ({"dim": 0}, "dim is 0; give a number above 0"),
    ({"dim": 33}, "dim is 33; allowed are 1 to 32"),
    ({"precision": "float8"}, "precision 'float8' is not known; allowed: float32"),
    ({"role": "qurey"}, "role 'qurey' is not defined.*Did you mean 'query'"),
    ({"heads": "dence"}, "'dence' is not a head; allowed: dense, sparse, multi_vector"),
    ({"heads": "dense,dense"}, "heads names one kind twice"),
    ({"heads": "{sparse: {topk: 5}}"}, "topk: unknown field.*Did you mean 'top_k'"),
    ({"heads": "{sparse: {top_k: 0}}"}, "top_k: Input should be greater than 0"),
    ({"max_length": 0}, "max_length is 0; give a number above 0"),
    ({"batch_tokens": 0}, "batch_tokens is 0; give a number above 0"),
    ({"instruction": "Find"}, r"has no \{instruction\}; leave it out"),
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
        ({"demonstrations": [{"query": "a"}]}, "no prompt.demonstration template"),
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
        ("", "'' is no recipe"),
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


def test_a_folder_that_is_no_model(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(ModelError, "is no model: it has no config.json", str(tmp_path / "empty"))
    (tmp_path / "empty" / "notes.txt").write_text("x")
    refused(ModelError, "is no model: it has no config.json", str(tmp_path / "empty"), None)
    file = tmp_path / "empty" / "notes.txt"
    refused(ModelError, "is not a folder; give a model folder", str(file))
    refused(ModelError, "is not a folder; give a model folder", str(tmp_path / "none"))
    refused(ModelError, "is not a folder; give a model folder", "./none")


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_missing_file(refused, copy, missing):
    (copy / missing).unlink()
    refused(ModelError, "model", str(copy))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "list", "number", "binary"])
def test_a_corrupt_json_file(refused, copy, file, damage):
    text = (copy / file).read_bytes()
    (copy / file).write_bytes(
        {
            "cut": text[: len(text) // 2],
            "empty": b"",
            "list": b"[]",
            "number": b"5",
            "binary": b"\x80\xff\x00",
        }[damage]
    )
    refused(ModelError, re.escape(str(copy)), str(copy))


@pytest.mark.parametrize("damage", ["half", "head", "empty", "garbage", "page", "pointer"])
def test_corrupt_weights(refused, copy, damage):
    file = copy / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(
        {
            "half": data[: len(data) // 2],
            "head": data[:20],
            "empty": b"",
            "garbage": b"\xff" * len(data),
            "page": b"<html>404</html>",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        }[damage]
    )
    refused(ModelError, f"weights in '{re.escape(str(copy))}' cannot be loaded", str(copy))


def test_weights_that_do_not_fit_the_config(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    refused(ModelError, "do not fit its config", str(copy))
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    refused(ModelError, "do not fit its config|cannot be loaded", str(copy))


def test_a_missing_shard(refused, copy):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    names = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    names["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(ModelError, re.escape(str(copy)), str(copy))
    (copy / "model.safetensors.index.json").write_text("{broken")
    refused(ModelError, re.escape(str(copy)), str(copy))


def test_an_architecture_that_is_not_known(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    for changes, told in (
        ({"model_type": "llamma"}, "llamma"),
        ({"model_type": None}, "model"),
        ({"hidden_size": "wide"}, "model"),
        ({"num_attention_heads": 0}, "model"),
    ):
        (copy / "config.json").write_text(json.dumps({**config, **changes}))
        refused(ModelError, told, str(copy))


def test_a_model_that_wants_its_own_code_run(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    code = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "x", "auto_map": code}))
    for name in ("configuration_x", "modeling_x"):
        (copy / f"{name}.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()")
    refused(UnsupportedError, "never runs remote code", str(copy))
    assert not (copy / "ran").exists()


def test_a_layout_file_that_cannot_be_read(refused, copy):
    (copy / "modules.json").write_text("{broken")
    refused(ModelError, r"modules\.json cannot be read as JSON", str(copy), None)
    for wrong in ("{}", '[{"path": "x"}]', "5", '[{"type": "x.y.Strange", "path": ""}]'):
        (copy / "modules.json").write_text(wrong)
        refused(ModelError, "modules.json|Strange", str(copy), None)
    (copy / "modules.json").unlink()
    (copy / "embedlm.yaml").write_text("pooling: {kind: median}")
    refused(RecipeError, "given 'median'", str(copy), None)


@pytest.mark.parametrize(
    ("architecture", "options"), [("llama", {"head": False}), ("t5", {}), ("bert", {"head": False})]
)
def test_a_sparse_head_without_a_language_model_head(
    refused, run, model_folder, tmp_path, architecture, options
):
    folder = str(model_folder(architecture, **options))
    told = "no language-model head"
    (tmp_path / "sparse.yaml").write_text("heads: [sparse]")
    refused(UnsupportedError, told, folder, str(tmp_path / "sparse.yaml"))
    loaded = embedlm.load(folder, "plain-mean", device="cpu")
    before = loaded.encode(["light"])
    with pytest.raises(UnsupportedError, match=told):
        loaded.encode(["light"], heads=["sparse"])
    np.testing.assert_array_equal(loaded.encode(["light"]), before)
    (tmp_path / "in.txt").write_text("light\n")
    line = ("-m", folder, "-r", "plain-mean", "--heads", "sparse", "-o", tmp_path / "out.npz")
    assert told in run("encode", tmp_path / "in.txt", *line).one_line()


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"HF_HUB_OFFLINE": "1"}, id="offline"),
        # The hub's library tries six times, for half a minute.
        pytest.param(
            {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
            id="unreachable",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_hub_id_without_network(tmp_path, environment):
    done = subprocess.run(
        [sys.executable, "-m", "embedlm.cli", "similarity", "a", "b", "-m", "nobody/nothing"],
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=120,
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
    )
    assert done.returncode == 2
    told = done.stderr.decode()
    assert told.startswith("embedlm: cannot load 'nobody/nothing' from the Hugging Face hub")
    assert told.count("\n") == 1
    assert "give the path of a local folder" in told


def test_what_is_no_hub_id(refused, tmp_path):
    refused(ModelError, "a//b", "a//b")
    refused(ModelError, "no such model!", "no such model!")
    refused(ModelError, "model", "")


def test_devices_and_types_that_are_not_there(refused, tiny_llama):
    refused(ModelError, "device 'gpu' cannot be used", tiny_llama, device="gpu")
    refused(ModelError, "device 'meta' cannot be used", tiny_llama, device="meta")
    refused(ModelError, "dtype 'float8' is not known; allowed: auto", tiny_llama, dtype="float8")


def test_adapters_that_are_not_there(run, tiny_llama, tmp_path):
    with pytest.raises(ModelError):
        embedlm.load(tiny_llama, "plain-mean", adapters=[str(tmp_path / "none")])
    run("render", "a", "-m", tiny_llama, "--adapter", tmp_path / "none").one_line()
