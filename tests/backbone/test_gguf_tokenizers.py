"""The tokens of a GGUF file are those that its vocabulary and its settings say."""

import unicodedata

import gguf
import numpy as np
import pytest

import embedlm
from embedlm.errors import ModelError
from tests.backbone.gguf_files import byte_level, sentencepiece, write_gguf
from tests.models import build

PIECES = ["ll", "he", "lo", "el", "or", "ld", "▁h", "▁w", "▁a", "▁he", "llo", "hello", "▁hello"]
PIECES += ["▁wor", "▁world", "▁▁"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama") / "folder", intermediate_size=64)


def opened(folder, tmp_path, vocabulary, recipe="plain-mean"):
    path = write_gguf(folder, tmp_path / "model.gguf", vocabulary=vocabulary)
    return embedlm.load(path, recipe, dtype="float32")


def tokens(model, text):
    return model.tokenizer.convert_ids_to_tokens(model.render([text]).ids[0])


def test_special_tokens_may_be_named_in_any_characters(folder, tmp_path):
    """DeepSeek's begin with a full-width bar; their rows are those of the file."""
    names = {"<s>": "<｜begin▁of▁sentence｜>", "</s>": "<｜end▁of▁sentence｜>"}
    plain = embedlm.load(folder, "plain-mean", dtype="float32")
    model = opened(folder, tmp_path, byte_level(folder, names))
    assert model.tokenizer.bos_token == names["<s>"]
    assert model.tokenizer.bos_token_id == 1
    assert model.tokenizer.eos_token_id == 2
    text = "plants make food"
    assert model.render([text]).ids == plain.render([text]).ids
    np.testing.assert_allclose(model.encode(text), plain.encode(text), atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma"])
def test_no_token_is_added_that_the_file_does_not_list(tmp_path, kind):
    """<|endoftext|>, <pad> or <mask> would be tokens for which the network has no rows."""
    name = "gemma2" if kind == "gemma" else "llama"
    folder = build(name, tmp_path / "folder", intermediate_size=64)
    vocabulary = byte_level(folder) if kind == "gpt2" else sentencepiece(PIECES)
    model = opened(folder, tmp_path, vocabulary)
    assert len(model.tokenizer) == 400
    prompt = {"default": "{text}<|endoftext|><bos><mask>"}
    recipe = {"name": "x", "prompt": prompt, "pooling": {"kind": "last"}}
    assert max(model.with_recipe(recipe).render(["hello"]).ids[0]) < 400
    assert np.isfinite(model.with_recipe(recipe).encode(["hello"])).all()


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_added_tokens_are_found_whole(folder, tmp_path, kind):
    model = opened(folder, tmp_path, byte_level(folder, {"<mask>": "<think>"}, {"<mask>": kind}))
    prompt = {"default": "<think>{text}"}
    model = model.with_recipe({"name": "x", "prompt": prompt, "pooling": {"kind": "last"}})
    assert model.render(["a"]).ids[0][:2] == [1, 3]


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_bos_and_eos_are_added_where_the_file_says_so(folder, tmp_path, begun, closed):
    settings = {"add_bos_token": begun, "add_eos_token": closed}
    for vocabulary in (byte_level(folder, **settings), sentencepiece(PIECES, **settings)):
        ids = opened(folder, tmp_path, vocabulary).render(["hello"]).ids[0]
        assert (ids[0] == 1, ids[-1] == 2) == (begun, closed)


@pytest.mark.parametrize(
    ("name", "first"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("gpt-2", False)]
)
def test_what_a_byte_level_file_leaves_out_goes_by_its_splitting(folder, tmp_path, name, first):
    vocabulary = byte_level(folder, pre=name)
    del vocabulary["add_bos_token"]
    model = opened(folder, tmp_path, vocabulary)
    assert model.tokenizer.backend_tokenizer.model.ignore_merges is first
    assert (model.render(["hello"]).ids[0][0] == 1) is first


def test_a_sentencepiece_file_that_names_no_special_tokens_has_the_usual_ones(folder, tmp_path):
    model = opened(folder, tmp_path, sentencepiece(PIECES))
    assert tokens(model, "hello world") == ["<s>", "▁hello", "▁world"]
    assert (model.tokenizer.eos_token_id, model.tokenizer.unk_token_id) == (2, 0)


@pytest.mark.parametrize(
    ("text", "before", "bare"),
    [
        ("hello world", ["▁hello", "▁world"], ["hello", "▁world"]),
        ("  hello", ["▁▁", "▁hello"], ["▁", "▁hello"]),
        ("hello é", ["▁hello", "▁", "<0xC3>", "<0xA9>"], ["hello", "▁", "<0xC3>", "<0xA9>"]),
        ("", [], []),
    ],
)
def test_a_space_before_the_text_is_added_or_not(folder, tmp_path, text, before, bare):
    """The tokens are those of llama.cpp's rules, worked out by hand."""
    for flag, expected in ((None, before), (True, before), (False, bare)):
        settings = {} if flag is None else {"add_space_prefix": flag}
        model = opened(folder, tmp_path, sentencepiece(PIECES, **settings))
        assert tokens(model, text) == ["<s>", *expected]


def test_qwens_characters_are_unified(folder, tmp_path):
    apart = unicodedata.normalize("NFD", "café")
    model = opened(folder, tmp_path, byte_level(folder, pre="qwen2"))
    assert model.render([apart]).ids == model.render(["café"]).ids
    model = opened(folder, tmp_path, byte_level(folder, pre="llama-bpe"))
    assert model.render([apart]).ids != model.render(["café"]).ids


def test_a_byte_level_file_that_names_no_splitting_is_told(folder, tmp_path, caplog):
    vocabulary = byte_level(folder)
    del vocabulary["pre"]
    for _ in range(2):  # the second time from the folder that was made before
        caplog.clear()
        model = opened(folder, tmp_path, vocabulary)
        assert "does not name how it splits text" in caplog.text
    named = opened(folder, tmp_path, {**vocabulary, "pre": "gpt-2"})
    text = "It's 1234 words,  or so"
    assert model.render([text]).ids == named.render([text]).ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ["a"] * 400}, "only 1 different ones"),
        ({"scores": [0.0]}, "scores to a list of 1"),
    ],
)
def test_a_damaged_vocabulary_is_refused(folder, tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        opened(folder, tmp_path, {**sentencepiece(PIECES), **changes})


@pytest.mark.parametrize("closed", [True, False])
def test_a_model_that_lost_the_token_it_reads_is_told_of(tmp_path, closed, caplog):
    folder = build("qwen3", tmp_path / "folder", intermediate_size=64)
    vocabulary = byte_level(folder, pre="qwen2", add_eos_token=closed)
    settings = {"qwen3.pooling_type": (3, gguf.GGUFValueType.UINT32)}
    path = write_gguf(folder, tmp_path / "model.gguf", vocabulary=vocabulary, **settings)
    for recipe in (None, "prompteol", {"name": "x", "prompt": {"default": "{text}{eos}"}}):
        caplog.clear()
        embedlm.load(path, recipe, dtype="float32")
        told = "adds no token after the text" in caplog.text
        assert told is (recipe is None and not closed)
