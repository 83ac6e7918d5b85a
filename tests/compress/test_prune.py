"""Models cut to their first layers and most used tokens."""

import json
import shutil
from importlib import import_module

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import embedlm
from embedlm.compress import prune
from embedlm.compress.vocabulary import count_tokens, cut_state, kept_ids, tokenizer_state
from embedlm.errors import InputError, UnsupportedError
from tests.backbone.gguf_files import write_gguf
from tests.command import sentences

TEXTS = ["plants make food", "x", "naïve café 東京", "a committee met on Tuesday"]


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen2", "qwen3", "gemma2", "bert"])
def test_the_first_layers_are_the_models_own(model_folder, tmp_path, name):
    source = model_folder(name)
    whole = embedlm.load(source, recipe="plain-mean")
    facts = prune(source, tmp_path / "cut", layers=1)
    assert facts["layers"] == [whole.backbone.layer_count, 1]
    assert facts["parameters"][1] < facts["parameters"][0]
    cut = embedlm.load(tmp_path / "cut", recipe="plain-mean")
    assert cut.backbone.layer_count == 1
    before = dict(whole.backbone.network.named_parameters())
    for key, weight in cut.backbone.network.named_parameters():
        assert "pooler" in key or torch.equal(weight, before[key])
    if name == "bert":  # without a norm at the end, the states are those of the inner layer
        inner = embedlm.load(source, recipe={"name": "one", "pooling": {"layer": 1}})
        recipe = {"name": "one"}
        expected = inner.encode(TEXTS)
        np.testing.assert_allclose(
            embedlm.load(tmp_path / "cut", recipe=recipe).encode(TEXTS), expected, atol=1e-6
        )


@pytest.mark.parametrize("name", ["llama", "qwen2", "bert"])
def test_all_parameters_are_counted_once(model_folder, tmp_path, name):
    source = model_folder(name)
    whole = prune(source, tmp_path / "same", save_dtype="bfloat16")["parameters"]
    before, _ = prune(source, tmp_path / "cut", layers=1)["parameters"]
    assert whole == [before, before]


@pytest.mark.parametrize("options", [{"layers": 1}, {"save_dtype": "bfloat16"}])
def test_another_model_is_never_replaced(model_folder, tmp_path, monkeypatch, options):
    """Neither one that was there, nor one that another process wrote in the meantime."""
    other = tmp_path / "other"
    shutil.copytree(model_folder("bert"), other)
    (other / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(InputError, match="is there already and would be overwritten"):
        prune(model_folder("llama"), other, **options)
    late = tmp_path / "late"
    module = import_module("embedlm.compress.prune")
    opened = module._opened

    def open_late(*given):
        shutil.copytree(other, late)
        return opened(*given)

    monkeypatch.setattr(module, "_opened", open_late)
    with pytest.raises(InputError, match="is there already and would be overwritten"):
        prune(model_folder("llama"), late, **options)
    for folder in (other, late):
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["llama", "qwen3", "bert"])
def test_a_cut_vocabulary_gives_texts_back_and_reads_the_same_rows(model_folder, tmp_path, name):
    source, texts = model_folder(name), sentences(200)
    whole = embedlm.load(source)
    size = len(whole.tokenizer) - 40
    facts = prune(source, tmp_path / "cut", vocabulary=size, texts=texts)
    cut = embedlm.load(tmp_path / "cut")
    assert facts["tokens"] == [len(whole.tokenizer), size]
    assert len(cut.tokenizer) == size == cut.backbone.vocab_size
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert config["vocab_size"] == size
    for role in ("bos_token", "eos_token", "pad_token"):
        index = getattr(whole.backbone.text_config, f"{role}_id")
        token = None if index is None else whole.tokenizer.convert_ids_to_tokens(index)
        assert config[f"{role}_id"] == (token and cut.tokenizer.convert_tokens_to_ids(token))
        assert getattr(cut.tokenizer, role) == getattr(whole.tokenizer, role)
    old, new = whole.tokenizer.get_vocab(), cut.tokenizer.get_vocab()
    rows = [m.backbone.network.get_input_embeddings().weight for m in (whole, cut)]
    for token, index in new.items():
        assert torch.equal(rows[1][index], rows[0][old[token]])
    for text in (*TEXTS, *texts[:50]):
        (own,), (other,) = (m.render([text]).ids for m in (cut, whole))
        assert cut.tokenizer.decode(own) == whole.tokenizer.decode(other)
        assert len(own) >= len(other)
        if len(own) == len(other):
            np.testing.assert_allclose(cut.encode(text), whole.encode(text), atol=1e-6)


def test_tokens_are_kept_with_what_they_are_made_of(model_folder):
    tokenizer = embedlm.load(model_folder("llama")).tokenizer
    state = tokenizer_state(tokenizer)
    counts = count_tokens(tokenizer, sentences(100))
    vocabulary = state["model"]["vocab"]
    always = 256 + len(state["added_tokens"])
    for size in (always, always + 7, len(vocabulary) - 3):
        cut = cut_state(state, kept_ids(state, counts, size))
        kept = cut["model"]["vocab"]
        made = {"".join(pair) for pair in cut["model"]["merges"]}
        assert all(len(token) == 1 or token in made for token in kept if "<" not in token)
        ids = [*kept.values(), *(token["id"] for token in cut["added_tokens"])]
        assert sorted(set(ids)) == list(range(size))
    for size in (always - 1, len(vocabulary) + 1000):
        with pytest.raises(InputError, match=f"from {always} to"):
            kept_ids(state, counts, size)


def test_of_several_pairs_the_one_counts_that_is_merged():
    """A SentencePiece vocabulary lists every pair; "abc" comes of "ab" and "c"."""
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "c", "ab", "bc", "abc", "x"]
    merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    state = tokenizer_state(PreTrainedTokenizerFast(tokenizer_object=core))
    counts = {vocabulary["abc"]: 5, vocabulary["x"]: 1}
    cut = cut_state(state, kept_ids(state, counts, 256 + 5))
    assert {"a", "b", "c", "ab", "abc"} <= cut["model"]["vocab"].keys()
    assert Tokenizer.from_str(json.dumps(cut)).encode("abc").tokens == ["abc"]


@pytest.mark.parametrize("model", [models.WordPiece(unk_token="a"), models.WordLevel()])
def test_other_kinds_of_vocabularies_are_refused(model):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    with pytest.raises(UnsupportedError, match="Cut the layers alone"):
        tokenizer_state(tokenizer)


def test_bytes_are_enough(model_folder, tmp_path):
    source = model_folder("llama")
    state = tokenizer_state(embedlm.load(source).tokenizer)
    prune(source, tmp_path / "cut", vocabulary=256 + len(state["added_tokens"]), texts=["a"])
    cut = embedlm.load(tmp_path / "cut").tokenizer
    text = "東京 🙂 naïve\n"
    assert cut.decode(cut.encode(text, add_special_tokens=False)) == text


def test_what_was_fitted_stays_where_it_is_true(model_folder, tmp_path, caplog):
    corpus = sentences(200, seed=3)
    weighed = {"name": "weighed", "pooling": {"kind": "mean", "weights": "idf"}}
    whole = embedlm.load(model_folder("llama"), weighed).fit(corpus)
    whole.save_pretrained(tmp_path / "weighed")
    prune(tmp_path / "weighed", tmp_path / "two", layers=1)
    cut = embedlm.load(tmp_path / "two")
    np.testing.assert_array_equal(cut.readout.statistics.idf(), whole.readout.statistics.idf())
    assert "fit it again" not in caplog.text
    prune(tmp_path / "weighed", tmp_path / "three", vocabulary=300, texts=corpus)
    assert "fit it again" in caplog.text
    assert embedlm.load(tmp_path / "three").readout.statistics is None
    static = embedlm.load(model_folder("llama"), "static-sif").fit(corpus)
    static.save_pretrained(tmp_path / "static")  # a table alone, which has no layers to be cut
    with pytest.raises(UnsupportedError, match="cannot be cut"):
        prune(tmp_path / "static", tmp_path / "four", layers=1)


def test_a_sparse_head_is_cut_alike(model_folder, tmp_path):
    source = model_folder("llama")
    whole = embedlm.load(source, recipe="splade-causal")
    size = len(whole.tokenizer) - 20
    prune(source, tmp_path / "cut", vocabulary=size, texts=sentences(200))
    cut = embedlm.load(tmp_path / "cut", recipe="splade-causal")
    assert cut.encode(TEXTS).sparse.shape == (4, size)


def test_gguf_and_numbers(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache"))
    shutil.copytree(model_folder("llama"), tmp_path / "source")
    file = write_gguf(tmp_path / "source", tmp_path / "model.gguf", "F16")
    prune(file, tmp_path / "cut", layers=1, save_dtype="int8")
    cut = embedlm.load(tmp_path / "cut")
    assert cut.backbone.layer_count == 1
    assert cut.encode(TEXTS).shape[0] == 4


def test_the_recipe_and_its_projection_stay(model_folder, tmp_path):
    heads = [{"dense": {"projection": {"width": 8, "init": "orthogonal"}}}]
    recipe = embedlm.Recipe.load("plain-last").override({"heads": heads})
    whole = embedlm.load(model_folder("llama"), recipe=recipe)
    whole.save_pretrained(tmp_path / "whole")
    prune(tmp_path / "whole", tmp_path / "cut", layers=1)
    cut = embedlm.load(tmp_path / "cut")
    assert cut.recipe.pooling.kind == "last"
    own, other = (m.readout.parts.projection.parts()[0].linear.weight for m in (cut, whole))
    assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("name", "options", "error", "told"),
    [
        ("llama", {"layers": 99}, InputError, "99 layers were asked for"),
        ("llama", {"layers": 0}, InputError, "layers is 0"),
        ("llama", {"vocabulary": 12, "texts": TEXTS}, InputError, "must stay"),
        ("llama", {"vocabulary": 300}, InputError, "give some"),
        ("llama", {"vocabulary": 300, "texts": "plants"}, InputError, "an iterable of texts"),
        ("llama", {"vocabulary": 300, "texts": ["a", 7]}, InputError, "item 1 is"),
        ("llama", {"intermediate": 8, "texts": iter(["a", None])}, InputError, "item 1 is"),
        ("gpt2", {"layers": 1}, UnsupportedError, "allowed: llama"),
    ],
)
def test_what_cannot_be_cut(model_folder, tmp_path, name, options, error, told):
    with pytest.raises(error, match=told):
        prune(model_folder(name), tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists()


def test_the_command(run, tiny_llama, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in sentences(50)))
    done = run(
        "compress",
        str(tiny_llama),
        "--layers",
        "1",
        "--dtype",
        "int8",
        "-o",
        str(tmp_path / "a"),
        "--json",
    )
    assert done.code == 0
    facts = json.loads(done.out)
    assert facts["layers"][1] == 1
    assert facts["bytes"] == (tmp_path / "a" / "model.safetensors").stat().st_size
    for words in ([], ["--texts", "texts.txt"], ["--layers", "x"], ["--dtype", "int4"]):
        refused = run("compress", str(tiny_llama), *words, "-o", str(tmp_path / "b"))
        assert refused.code == 2
        assert refused.err.count("\n") == 1


def test_a_model_is_not_replaced_by_its_smaller_self(run, copy, tmp_path):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for output, told in (
        (copy, "is an input, too"),
        (copy / ".." / "model", "is an input, too"),
        (copy / "small", "lies inside the input"),
        (tmp_path, "holds the input"),
    ):
        words = ("compress", copy, "-o", output, "--dtype", "int8", "--device", "cpu")
        assert told in run(*words).one_line()
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
