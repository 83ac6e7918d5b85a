"""Which recipe a command takes where none, or a part of one, is named."""

import json

import pytest

import embedlm
from embedlm.cli._options import Loading


def test_a_model_that_has_no_recipe_is_told_of_once(run, tiny_llama):
    done = run("similarity", "a", "b", "-m", tiny_llama, "--json")
    assert json.loads(done.out)["texts"] == ["a", "b"]
    assert done.err == (
        f"{tiny_llama} has no recipe of its own, and is read by plain-mean: the mean of its last "
        "states, without a prompt. Name another with --recipe (recipe=); embedlm recipes lists "
        "them\n"
    )


def test_a_model_that_has_one_or_is_given_one_is_not(run, tiny_llama, tmp_path):
    embedlm.load(tiny_llama, "plain-mean").save_pretrained(tmp_path / "saved")
    for options in (("-m", tmp_path / "saved"), ("-m", tiny_llama, "-r", "plain-mean")):
        done = run("similarity", "a", "b", *options)
        assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(("name", "own"), [("builtin", "builtin"), ("builtin-base", "plain-mean")])
def test_a_builtin_models_own_recipe_is_changed(name, own):
    changed = Loading(change=("dim=8",)).load(name)
    assert (changed.name, changed.recipe.name, changed.dim) == (name, own, 8)
