"""Compiled layers give the same vectors, and what cannot be compiled still runs."""

import numpy as np
import pytest

import embedlm
from embedlm.backbone import compiling
from tests.test_backbone import TEXTS, relative


@pytest.fixture(autouse=True)
def any_size_suits(monkeypatch):
    monkeypatch.setattr(compiling, "LEAST", 0)


def model(model_folder, name):
    return embedlm.load(model_folder(name), recipe="plain-mean")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_compiled_equals_uncompiled(model_folder, name):
    found = model(model_folder, name)
    before = found.encode(TEXTS)
    found.backbone.compiling.mode = "on"
    assert relative(found.encode(TEXTS), before) < 1e-4
    assert found.backbone.compiling.active
    alone = np.stack([found.encode(text) for text in TEXTS])
    assert relative(alone, before) < 1e-4
    found.backbone.compiling.mode = "off"
    assert relative(found.encode(TEXTS), before) < 1e-4
    assert not found.backbone.compiling.active


def test_a_long_job_is_compiled_and_a_short_one_is_not(model_folder, monkeypatch):
    found = model(model_folder, "llama")
    found.encode(TEXTS)
    assert not found.backbone.compiling.active
    monkeypatch.setattr(compiling, "REPAID_AFTER", 0.0)
    found.encode(TEXTS)
    assert found.backbone.compiling.active


def test_a_small_pack_runs_uncompiled(model_folder, monkeypatch):
    monkeypatch.setattr(compiling, "LEAST", 10_000)
    found = model(model_folder, "llama")
    found.backbone.compiling.mode = "on"
    found.encode(TEXTS)
    assert not found.backbone.compiling.active


@pytest.mark.parametrize("layer", [-2, 1, [-1, 1]])
def test_a_chosen_layer_is_the_same_compiled(model_folder, layer):
    recipe = embedlm.Recipe.load("plain-mean").override({"pooling.layer": layer})
    found = embedlm.load(model_folder("llama"), recipe=recipe)
    before = found.encode(TEXTS)
    found.backbone.compiling.mode = "on"
    assert relative(found.encode(TEXTS), before) < 1e-4
    assert found.backbone.compiling.active
    assert all(one._compiled_call_impl is not None for one in found.backbone.layers)


def test_a_failing_compiler_costs_nothing_but_time(model_folder, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent")
    found = model(model_folder, "llama")
    before = found.encode(TEXTS)

    def fail(layer, **_):
        raise RuntimeError("no compiler")

    layers = found.backbone.compiling.layers
    for layer in layers:
        monkeypatch.setattr(layer, "_compiled_call_impl", lambda *a, **k: fail(None))
    found.backbone.compiling.active = True
    assert relative(found.encode(TEXTS), before) < 1e-6
    assert not found.backbone.compiling.active
