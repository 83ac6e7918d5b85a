"""The table of layouts: what was written is read back, and no key is dropped without a word."""

import json

import numpy as np
import pytest
import transformers as tf
from sentence_transformers import SentenceTransformer, models

import embedlm
from embedlm.errors import ModelError, UnsupportedError
from embedlm.persistence.expressible import is_expressible, prefixes_of
from embedlm.persistence.layouts import PYLATE, SETTINGS, TRANSFORMER
from embedlm.persistence.modules import MODULES, POOLINGS
from embedlm.persistence.sentence_transformers import read_folder
from embedlm.persistence.settings import Outline
from embedlm.persistence.written import write_outline
from embedlm.schema.recipe import Recipe
from tests.models import VOCAB, build

TEXTS = ["plants MAKE food", "x", "the Quick brown fox jumps", "a committee met on Tuesday"]
FILES = {
    "config_sentence_transformers.json": SETTINGS,
    "sentence_bert_config.json": TRANSFORMER,
    **{f"{kind}/config.json": module.settings for kind, module in MODULES.items()},
}

# -- read what was written ---------------------------------------------------------------------

PLAIN = {"name": "mine", "prompt": {"default": "{text}"}, "heads": ["dense"]}
DENSE = {
    **{f"pooling {kind}": {"pooling.kind": kind} for kind in POOLINGS},
    "normalize": {"normalize": True},
    "dot": {"similarity": "dot"},
    "several poolings": {"pooling.kind": ["cls", "mean", "last"]},
    "several in an order of their own": {"pooling.kind": ["last", "cls"]},
    "cut": {"dim": 8},
    "cut after normalising": {"dim": 8, "normalize": True, "renormalize": False},
    "max_length": {"prompt.max_length": 77},
    "lower": {"prompt.clean": "lower"},
    "prompt left out": {
        "pooling.over": ["special", "text", "eos"],
        "pooling.boundary": "count_prompt",
    },
    "prompts": {
        "prompt.query": "q: {text}",
        "prompt.document": "{{d}} {text}",
        "prompt.roles": {"v1.5 title": "t: {text}"},
    },
    "default prompt": {
        "prompt.default": "x: {text}",
        "prompt.query": "q: {text}",
        "prompt.document": "{text}",
    },
}
SPARSE = {reduce: {"heads": [{"sparse": {"reduce": reduce}}]} for reduce in ("max", "sum")} | {
    "log1p": {"heads": [{"sparse": {"reduce": "max", "activation": "log1p_relu"}}]},
    "top_k": {"heads": [{"sparse": {"reduce": "max", "top_k": 9}}]},
    "cosine": {"heads": [{"sparse": {"reduce": "max", "similarity": "cosine"}}]},
}
LATE = {
    "plain": {},
    "no expansion": {"prompt.expansion": None},
    "attended": {"prompt.expansion.attended": True},
    "lengths": {"prompt.max_length": {"query": 16, "document": 99}, "prompt.expansion.length": 16},
    "skip": {"heads.multi_vector.skip": [".", "the"]},
    "mean": {"heads.multi_vector.score": "mean"},
    "prefixes": {
        "prompt.query": "Q {text}",
        "prompt.document": "D {text}",
        "prompt.default": "D {text}",
    },
}
COLBERT = {"prompt.default": "[D] {text}"}
"""A folder has no prompt beside those of queries and documents, so a document's is the default."""
CASES = {
    **{f"dense: {name}": (PLAIN, change) for name, change in DENSE.items()},
    **{f"sparse: {name}": (PLAIN, change) for name, change in SPARSE.items()},
    **{f"late: {name}": ("colbert", COLBERT | change) for name, change in LATE.items()},
}


def outline_of(recipe):
    prefixes = prefixes_of(recipe)
    lengths = recipe.prompt.max_length
    longest = lengths if isinstance(lengths, int) else None
    return Outline(recipe, prefixes.named, prefixes.default, 32, 100, longest)


def written(recipe, folder):
    folder.mkdir()
    write_outline(outline_of(recipe), folder)
    files = sorted(path for path in folder.rglob("*.json"))
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in files}


@pytest.mark.parametrize(("base", "change"), CASES.values(), ids=list(CASES))
def test_what_was_written_is_read(tmp_path, base, change):
    recipe = Recipe.load(base).override(change)
    assert is_expressible(recipe)
    files = written(recipe, tmp_path / "one")
    back = read_folder(tmp_path / "one", Recipe.load(base))
    assert back.heads == recipe.heads
    assert back.pooling == recipe.pooling
    assert back.normalize == recipe.normalize
    if recipe.heads[0].kind == "dense":
        assert (back.similarity, back.dim) == (recipe.similarity, recipe.dim)
    ours, theirs = recipe.prompt, back.prompt
    assert (theirs.max_length, theirs.expansion) == (ours.max_length, ours.expansion)
    assert theirs.clean == ours.clean
    assert prefixes_of(back).named.items() >= prefixes_of(recipe).named.items()
    assert theirs.default == ours.default
    assert written(back, tmp_path / "two") == files


@pytest.mark.parametrize(
    "name", [one for one in embedlm.recipes() if is_expressible(Recipe.load(one))]
)
def test_every_recipe_is_written_as_it_was_read(tmp_path, name):
    recipe = Recipe.load(name)
    files = written(recipe, tmp_path / "one")
    late = recipe.heads[0].kind == "multi_vector"
    base = "colbert" if late else {**PLAIN, "normalize": False}
    back = read_folder(tmp_path / "one", Recipe.load(base))
    again = written(back, tmp_path / "two")
    for file, content in files.items():
        assert again[file] == content, file


def test_every_setting_that_is_written_is_in_a_case():
    seen = {}
    for base, change in CASES.values():
        outline = outline_of(Recipe.load(base).override(change))
        for key, values in values_of(outline).items():
            seen.setdefault(key, set()).add(json.dumps(values))
    assert {key for key, values in seen.items() if len(values) == 1} == set()


def values_of(outline):
    """Return what each two-way setting writes for a recipe, where it has a meaning for it."""
    kind = outline.recipe.heads[0].kind
    parts = {"dense": ["Pooling"], "sparse": ["SpladePooling"], "multi_vector": []}[kind]
    settings = [*SETTINGS, *TRANSFORMER, *(PYLATE if kind == "multi_vector" else ())]
    settings += [one for part in parts for one in MODULES[part].settings]
    return {one.key: one.write(outline) for one in settings if one.write}


# -- what is not known is refused --------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Return a folder of sentence-transformers' files alone."""
    written(Recipe.load(PLAIN).override({"normalize": True}), tmp_path / "mine")
    return tmp_path / "mine"


def add_module(folder, kind, package="sentence_transformers.models."):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / kind).mkdir(exist_ok=True)
    number = len(modules)
    modules.append({"idx": number, "name": str(number), "path": kind, "type": package + kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    if kind == "Dense":
        widths = {"in_features": 32, "out_features": 8}
        (folder / kind / "config.json").write_text(json.dumps(widths))


def set_key(folder, file, key, value):
    path = folder / file
    if "/" in file and not path.parent.is_dir():
        add_module(folder, file.split("/")[0])
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, key: value}))


def read(folder):
    return read_folder(folder, Recipe.load(PLAIN))


# The config.json of a network, and of a model2vec table, is no module's.
OWN = {f"{kind}/config.json" for kind in ("Transformer", "MLMTransformer", "StaticEmbedding")}


@pytest.mark.parametrize("file", [name for name in FILES if name not in OWN])
def test_an_unknown_key_is_refused_by_name_and_file(folder, file):
    set_key(folder, file, "poolng_scale", 3)
    with pytest.raises(UnsupportedError, match=rf"{file}: the key 'poolng_scale' \(value 3\)"):
        read(folder)


UNFIT = {
    "do_lower_case": "yes",
    "default_prompt_name": 3,
    "prompts": {"a": 3},
    "max_seq_length": -1,
    "model_type": "CrossEncoder",
    "similarity_fn_name": "jaccard",
    "truncate_dim": 0,
    "max_active_dims": 0,
    "transformer_task": "text-generation",
    "modality_config": {"text": {"method": "get_text_features", "method_output_name": "x"}},
    "module_output_name": "sentence_embedding",
    "processing_kwargs": {"text": {"add_special_tokens": False}},
    "model_args": {"num_hidden_layers": 3},
    "tokenizer_name_or_path": "other/model",
    "include_prompt": "no",
    "pooling_mode_mean_sqrt_len_tokens": 1,
    "pooling_mode": ["mean", "median"],
    "word_embedding_dimension": -1,
    "embedding_dimension": "32",
    "in_features": 0,
    "out_features": 3.5,
    "bias": "no",
    "use_residual": None,
    "dropout": 2,
    "chunk_size": 0,
    "unpad_inputs": "no",
    "idx": -1,
    "activation_function": 3,
    "pooling_strategy": "mean",
    "skiplist_tasks": ["query", "document"],
    "keep_only_token_ids": [1],
    "module_input_name": "cls_embedding",
    "query_expansion": {"strategy": "longest", "length": 3},
}


NULLS = {one.key for settings in FILES.values() for one in settings if one.null != "refused"}
"""Keys that published files write with null."""


def fits(file, key):
    """Tell whether a value that is refused elsewhere is fine in this file."""
    vectors = ("Dense/config.json", "Normalize/config.json")
    return file in vectors and key == "module_output_name"


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (file, setting.key)
        for file, settings in FILES.items()
        for setting in settings
        if setting.key in UNFIT and not fits(file, setting.key)
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused(folder, file, key):
    set_key(folder, file, key, UNFIT[key])
    with pytest.raises(UnsupportedError, match=rf"{file}: {key} is .*EmbedLM can honour"):
        read(folder)
    if key not in NULLS:
        set_key(folder, file, key, None)
        with pytest.raises(UnsupportedError, match=rf"{file}: {key} is None; EmbedLM can honour"):
            read(folder)


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "C:\\x", "a\\b"])
def test_a_path_that_leaves_the_folder_is_refused(folder, path):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"modules\.json names the path .* inside its folder"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("modules.json", "{}", "not a list of modules"),
        ("modules.json", "[]", "not a list of modules"),
        ("modules.json", '[{"type": 3, "path": ""}]', "lacks 'name'"),
        ("config_sentence_transformers.json", "[]", "holds list"),
        ("sentence_bert_config.json", "[" * 100_000, "cannot be read as JSON"),
        ("1_Pooling/config.json", "{}", "lacks 'word_embedding_dimension'"),
        ("1_Pooling/config.json", '{"embedding_dimension": 8, "a": 1, "a": 2}', "'a' .* twice"),
        ("1_Pooling/config.json", '{"embedding_dimension": NaN}', "NaN is no JSON number"),
        ("1_Pooling/config.json", '\ufeff{"embedding_dimension": 8}', "not valid JSON .*BOM"),
        (
            "1_Pooling/config.json",
            '{"embedding_dimension": 8, "pooling_mode": 3}',
            "pooling_mode is 3",
        ),
        (
            "1_Pooling/config.json",
            '{"embedding_dimension": 8, "word_embedding_dimension": 9}',
            "9 wide, and 8 wide",
        ),
    ],
)
def test_a_malformed_file_is_named(folder, file, content, told):
    (folder / file).write_text(content)
    with pytest.raises(ModelError, match=told):
        read(folder)


def test_a_default_prompt_that_is_not_there_is_refused(folder):
    set_key(folder, "config_sentence_transformers.json", "default_prompt_name", "missing")
    with pytest.raises(ModelError, match=r"default_prompt_name is 'missing'.*there are none|quer"):
        read(folder)


def test_modules_of_other_packages_and_in_another_order_are_refused(folder):
    add_module(folder, "Dense")
    with pytest.raises(
        UnsupportedError, match=r"has the modules .*, Normalize, Dense; EmbedLM knows"
    ):
        read(folder)
    add_module(folder, "Pooling", "custom_st.")
    with pytest.raises(UnsupportedError, match=r"'custom_st\.Pooling'"):
        read(folder)


# -- against sentence-transformers itself ------------------------------------------------------


def peer_of(tmp_path, arch="bert", kind="mean", include_prompt=True, vocab_size=VOCAB, **options):
    base = tmp_path / "base"
    build(arch, base, vocab_size=vocab_size)
    transformer = models.Transformer(str(base))
    width = transformer.get_embedding_dimension()
    pooling = models.Pooling(width, POOLINGS[kind][0], include_prompt=include_prompt)
    peer = SentenceTransformer(modules=[transformer, pooling], device="cpu", **options)
    peer.save(str(tmp_path / "theirs"), create_model_card=False)
    return SentenceTransformer(str(tmp_path / "theirs"), device="cpu"), tmp_path / "theirs"


def assert_alike(peer, folder, texts=TEXTS):
    model = embedlm.load(folder, device="cpu")
    np.testing.assert_allclose(model.encode(texts), peer.encode(texts), atol=1e-5)
    np.testing.assert_allclose(model.encode_query(texts), peer.encode_query(texts), atol=1e-5)
    ours, theirs = model.encode_document(texts), peer.encode_document(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    return model


@pytest.mark.parametrize("arch", ["bert", "llama"])
@pytest.mark.parametrize("kind", [kind for kind in POOLINGS if kind != "weighted_mean"])
def test_a_prompt_that_is_left_out(tmp_path, arch, kind):
    prompts = {"query": "find this: ", "document": ""}
    peer, folder = peer_of(tmp_path, arch, kind, include_prompt=False, prompts=prompts)
    model = assert_alike(peer, folder)
    model.save_pretrained(tmp_path / "ours")
    assert_alike(SentenceTransformer(str(tmp_path / "ours"), device="cpu"), tmp_path / "ours")


@pytest.mark.parametrize("default", ["query", "document", "title", "sts"])
def test_a_default_prompt_of_any_name(tmp_path, default):
    prompts = {
        "query": "Instruct: Retrieve passages.\nQuery: ",
        "sts": "Instruct: Find the same.\nQuery: ",
        "document": "passage: ",
        "title": "title {x}: ",
    }
    peer, folder = peer_of(tmp_path, prompts=prompts, default_prompt_name=default)
    model = assert_alike(peer, folder)
    for name in prompts:
        ours, theirs = model.encode(TEXTS, role=name), peer.encode(TEXTS, prompt_name=name)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_default_prompt_is_not_that_of_queries_and_documents(tmp_path):
    peer, folder = peer_of(tmp_path, prompts={"title": "title: "}, default_prompt_name="title")
    assert_alike(peer, folder)


def test_lower_case(tmp_path):
    _, folder = peer_of(tmp_path, prompts={"query": "FIND: "})
    set_key(folder, "sentence_bert_config.json", "do_lower_case", True)
    assert_alike(SentenceTransformer(str(folder), device="cpu"), folder)
    assert embedlm.load(folder).recipe.prompt.clean == "lower"


def test_lower_case_spares_control_tokens_and_holds_for_a_prompt_of_the_call(tmp_path):
    _, folder = peer_of(tmp_path, prompts={"query": "FIND [X] "}, vocab_size=410)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[X]"]})
    tokenizer.save_pretrained(folder)
    set_key(folder, "sentence_bert_config.json", "do_lower_case", True)
    peer = SentenceTransformer(str(folder), device="cpu")
    spelled = [*TEXTS, "A [X] B", "[x]", "</S> END </s>", "[X]"]
    model = assert_alike(peer, folder, spelled)
    for prompt in ("TITLE: ", "[X] Title "):
        ours, theirs = model.encode(spelled, prompt=prompt), peer.encode(spelled, prompt=prompt)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    model.save_pretrained(tmp_path / "ours")
    assert_alike(peer, tmp_path / "ours", spelled)
    assert_alike(SentenceTransformer(str(tmp_path / "ours"), device="cpu"), folder, spelled)


@pytest.mark.parametrize("own", ["query: ", "", None])
def test_a_task_in_another_prompt_is_not_that_of_queries(tmp_path, own):
    prompts = {"sts": "Instruct: Find the same.\nQuery: ", "document": "passage: "}
    peer, folder = peer_of(tmp_path, prompts=prompts if own is None else {"query": own, **prompts})
    model = assert_alike(peer, folder)
    for name in prompts:
        ours, theirs = model.encode(TEXTS, role=name), peer.encode(TEXTS, prompt_name=name)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    given = "Instruct: Find it.\nQuery: "
    ours, theirs = model.encode(TEXTS, instruction="Find it."), peer.encode(TEXTS, prompt=given)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"), [("pooling_mode", "bos_token"), ("max_length", "512"), ("pool", "mean")]
)
def test_what_llm2vec_cannot_mean_is_refused(tmp_path, key, value):
    (tmp_path / "llm2vec_config.json").write_text(json.dumps({key: value}))
    with pytest.raises(UnsupportedError, match=rf"llm2vec_config\.json: .*{key}"):
        embedlm.persistence.recognise(tmp_path)
