"""Fixtures shared by all tests: tiny random models, made once a session."""

import re
import shutil

import pytest
import torch
from hypothesis import settings

import embedlm
from embedlm.errors import EmbedLMError
from tests import models
from tests.command import server

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Return a function from an architecture's name to the folder of a tiny model of it."""
    made = {}

    def folder(name, **options):
        key = (name, *sorted(options.items()))
        if key not in made:
            target = tmp_path_factory.mktemp(name.replace("/", "-")) / "model"
            made[key] = models.build(name, target, **options)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny_llama(model_folder):
    """Return the folder of a tiny Llama with its language-model head."""
    return model_folder("llama")


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the command line in a fork."""

    def run(*arguments, **how):
        return server()(*arguments, folder=tmp_path, **how)

    return run


@pytest.fixture
def with_model(tiny_llama):
    """Return the options of a command that name a tiny model."""
    return ("-m", tiny_llama, "-r", "plain-mean", "--device", "cpu")


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
