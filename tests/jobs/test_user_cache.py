"""Where a user's cache lies, and what happens where the user has no home."""

from pathlib import Path

import pytest

import embedlm
from embedlm.encode.compiling import Costs
from embedlm.errors import EmbedLMError, InputError
from embedlm.generation.cache import default_path
from embedlm.jobs.user_cache import expanded, user_cache
from tests.command import server

NOBODY = "~no-such-user"


def test_the_folder_that_a_variable_names(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("EMBEDLM_CACHE", raising=False)
    assert user_cache() == Path("/home/me/.cache/embedlm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert user_cache() == Path("/cache/embedlm")
    monkeypatch.setenv("EMBEDLM_CACHE", "~/ours")
    assert user_cache() == Path("/home/me/ours")


@pytest.mark.parametrize("place", [user_cache, default_path])
@pytest.mark.parametrize("variable", ["EMBEDLM_CACHE", "XDG_CACHE_HOME"])
def test_the_home_of_no_user_is_refused_where_files_must_be_kept(variable, place, monkeypatch):
    monkeypatch.delenv("EMBEDLM_CACHE", raising=False)
    monkeypatch.setenv(variable, f"{NOBODY}/cache")
    with pytest.raises(InputError, match=r"'~no-such-user' is no home .* set EMBEDLM_CACHE"):
        place()


def test_what_compiling_costs_is_not_kept_without_a_home(monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", f"{NOBODY}/cache")
    Costs(3.0).keep("layers")
    assert Costs.kept("layers") == Costs()


def test_a_user_without_a_home_encodes(tmp_path):
    code = "import embedlm\nprint(embedlm.load().encode('a fox').shape)"
    done = server().run_code(code, folder=tmp_path, EMBEDLM_CACHE=f"{NOBODY}/cache")
    assert done.out.split() == ["(384,)"], done.err


@pytest.mark.parametrize("source", [f"{NOBODY}/model", f"{NOBODY}/model.gguf"])
def test_a_model_in_the_home_of_no_user_is_not_found(source):
    assert expanded(source) == Path(source)
    with pytest.raises(EmbedLMError, match="no-such-user"):
        embedlm.load(source)
