"""A text's own words, which restrict PromptReps's sparse vector."""

import json

import pytest

from embedlm.readout.words import STOP_WORDS, valid_words
from tests.parity import folder, needs_parity, texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cats sat on THE mats.", ["cats", "sat", "mats"]),
        ("cat, cat; (cat)", ["cat", "cat", "cat"]),
        ("I don't think it's hers", ["think"]),
        ("well-known 3.14", ["well", "known", "3", "14"]),
        ("snake_case", ["snake_case"]),
        ("naïve Ångström", ["naïve", "ångström"]),
        ("rocket 🚀 ，", ["rocket", "🚀", "，"]),
        ("the of and", []),
        (" \n\t", []),
        ("", []),
    ],
)
def test_words_without_stop_words_and_punctuation(text, words):
    assert valid_words(text) == words


def test_lists_grow():
    assert STOP_WORDS["none"] < STOP_WORDS["short"] < STOP_WORDS["english"]
    assert valid_words("Into the light", "short") == ["into", "light"]
    assert valid_words("Into the light", "none") == ["into", "the", "light"]
    for words in STOP_WORDS.values():
        assert all(word == word.lower() and word.isalpha() for word in words)


@needs_parity
def test_words_equal_the_references_with_its_short_list():
    file = folder("12_promptreps") / "expected_sparse.json"
    wanted = json.loads(file.read_text())["words"]
    assert [valid_words(text, "short") for text in texts()] == wanted
