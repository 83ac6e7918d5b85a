"""Compiled layers give the same vectors, and what cannot be compiled still runs."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedlm
from embedlm.backbone import prepacked
from embedlm.encode import compiling
from tests.backbone.test_backbone import TEXTS, relative


@pytest.fixture(autouse=True)
def any_size_suits(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "LEAST", 0)
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache"))


def model(model_folder, name):
    return embedlm.load(model_folder(name), recipe="plain-mean")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_compiled_equals_uncompiled(model_folder, name):
    found = model(model_folder, name)
    before = found.encode(TEXTS)
    found.executor.compiling.mode = "on"
    assert relative(found.encode(TEXTS), before) < 1e-4
    assert found.executor.compiling.active
    alone = np.stack([found.encode(text) for text in TEXTS])
    assert relative(alone, before) < 1e-4
    found.executor.compiling.mode = "off"
    assert relative(found.encode(TEXTS), before) < 1e-4
    assert not found.executor.compiling.active


@pytest.mark.parametrize(("after", "pays"), [(1.0, True), (3.0, False)])
def test_a_long_job_is_compiled_and_a_short_one_is_not(model_folder, monkeypatch, after, pays):
    monkeypatch.setattr(compiling.Compiling, "_compare", lambda self: (2.0, after))
    found = model(model_folder, "llama")
    found.encode(TEXTS)
    assert not found.executor.compiling.active
    nothing = compiling.Costs(0.0, 0.5)
    nothing.keep(found.executor.compiling.key)
    found.executor.compiling._known = None
    start = time.perf_counter()
    before = found.encode(TEXTS)
    spent = time.perf_counter() - start
    assert found.executor.compiling.active == pays
    measured = compiling.Costs.kept(found.executor.compiling.key)
    assert measured.share == (0.5 if pays else -0.5)
    assert 0 < measured.seconds < spent
    assert relative(found.encode(TEXTS), before) < 1e-4
    assert found.executor.compiling.active == pays


def test_what_lies_ahead_decides(model_folder, monkeypatch):
    kernels = model(model_folder, "llama").executor.compiling
    assert not kernels.worth(10_000)  # nothing is known yet: a guess of 30 s
    kernels._known = compiling.Costs(1.0, 0.5)
    pace = kernels._plain.of_one
    assert kernels.worth(int(2.5 / pace))
    assert not kernels.worth(int(1.5 / pace))
    kernels._known = compiling.Costs(1.0, -0.5)
    assert not kernels.worth(10**12)


def test_a_card_s_first_tokens_say_nothing_of_those_ahead(model_folder):
    kernels = model(model_folder, "llama").executor.compiling
    kernels._known = compiling.Costs(10.0, 0.5)
    kernels._plain = compiling.Pace(1.0, 500)  # most of it loads kernels
    assert kernels._due(ahead=100_000)
    kernels.on_card = True
    assert not kernels._due(ahead=100_000)
    kernels._plain = compiling.Pace(1.5, compiling.TRIAL_ON_CARD)
    assert kernels._due(ahead=200_000)
    assert not kernels._due(ahead=50_000)


def test_passes_do_not_wait_for_another_thread_that_compiles(model_folder):
    kernels = model(model_folder, "llama").executor.compiling
    with ThreadPoolExecutor(1) as pool, kernels._lock:
        pool.submit(kernels.took, 100, kernels.begin()).result(timeout=10)
    assert kernels._plain.tokens == 100


def test_what_is_kept_may_be_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path))
    for text in ("", "[]", '{"a": {"seconds": "x"}}', '{"a": 3}'):
        (tmp_path / "compiling.json").write_text(text)
        assert compiling.Costs.kept("a") == compiling.Costs()
    compiling._file().write_text("[]")
    compiling.Costs(2.0, 0.1).keep("a")
    compiling.Costs(3.0, 0.2).keep("b")
    assert compiling.Costs.kept("a") == compiling.Costs(2.0, 0.1)
    assert compiling.Costs.kept("c").seconds == 2.5  # as others of this machine
    compiling.Costs(2.0, -0.1).keep("a")
    assert compiling.Costs.kept("a").share == -0.1
    compiling.Costs(2.0, -0.1, at=time.time() - compiling.RETRY).keep("a")  # may be tried again
    assert compiling.Costs.kept("a") == compiling.Costs(3.0, 0.2)
    monkeypatch.setenv("EMBEDLM_CACHE", "/proc/no/such/place")
    compiling.Costs(2.0, 0.1).keep("a")
    assert compiling.Costs.kept("a") == compiling.Costs()


@pytest.fixture(scope="module")
def chosen(tiny_llama):
    """Return models of the same weights that run on plain, packed and compiled layers."""
    found = {mode: embedlm.load(tiny_llama, recipe="plain-mean") for mode in ("plain", "off", "on")}
    for mode, one in found.items():
        one.executor.compiling.mode = mode
    return found


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=12), budget=st.integers(8, 200))
def test_all_kernels_give_the_same(chosen, monkeypatch, texts, budget):
    monkeypatch.setattr(prepacked, "_gains", lambda dtype: True)
    wanted = chosen["plain"].encode(texts)
    for mode in ("off", "on"):
        assert relative(chosen[mode].encode(texts, batch_tokens=budget), wanted) < 1e-4
    assert chosen["on"].executor.compiling.active
    assert chosen["off"].executor.compiling.packed
    assert not chosen["plain"].executor.compiling.packed


def test_a_small_pack_runs_uncompiled(model_folder, monkeypatch):
    monkeypatch.setattr(compiling, "LEAST", 10_000)
    found = model(model_folder, "llama")
    found.executor.compiling.mode = "on"
    found.encode(TEXTS)
    assert not found.executor.compiling.active


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_where_compiling_rounds_otherwise_it_is_asked_for_and_for_all_packs(
    model_folder, monkeypatch, dtype
):
    monkeypatch.setattr(compiling, "LEAST", 10_000)
    found = embedlm.load(model_folder("llama"), recipe="plain-mean", dtype=dtype)
    kernels = found.executor.compiling
    kernels._known = compiling.Costs(0.0, 0.5)  # it would pay at once
    before = found.encode(TEXTS)
    assert not kernels.worth(10**12)
    np.testing.assert_array_equal(found.encode(TEXTS), before)
    assert not kernels.active
    kernels.settle("on")
    together = found.encode(TEXTS)
    assert kernels.active
    alone = np.stack([found.encode(text) for text in TEXTS])
    assert relative(alone, together) < 1e-5


@pytest.mark.parametrize("layer", [-2, 1, [-1, 1]])
def test_a_chosen_layer_is_the_same_compiled(model_folder, layer):
    recipe = embedlm.Recipe.load("plain-mean").override({"pooling.layer": layer})
    found = embedlm.load(model_folder("llama"), recipe=recipe)
    before = found.encode(TEXTS)
    found.executor.compiling.mode = "on"
    assert relative(found.encode(TEXTS), before) < 1e-4
    assert found.executor.compiling.active
    assert all(one._compiled_call_impl is not None for one in found.executor.compiling.layers)


def test_a_failing_compiler_costs_nothing_but_time(model_folder, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent")
    found = model(model_folder, "llama")
    before = found.encode(TEXTS)

    def fail(layer, **_):
        raise RuntimeError("no compiler")

    layers = found.executor.compiling.layers
    for layer in layers:
        monkeypatch.setattr(layer, "_compiled_call_impl", lambda *a, **k: fail(None))
    found.executor.compiling.active = True
    assert relative(found.encode(TEXTS), before) < 1e-6
    assert not found.executor.compiling.active


def test_a_compiler_that_fails_at_a_job_s_start_leaves_no_record(model_folder, monkeypatch):
    found = model(model_folder, "llama")
    before = found.encode(TEXTS)

    def fail(*_, **__):
        raise RuntimeError("no compiler")

    for layer in found.executor.compiling.layers:
        put = partial(setattr, layer, "_compiled_call_impl", fail)
        monkeypatch.setattr(layer, "compile", lambda put=put, **_: put())
    kernels = found.executor.compiling
    kernels.settle("on")
    assert not kernels.active
    assert compiling.Costs.kept(kernels.key) == compiling.Costs()
    assert relative(found.encode(TEXTS), before) < 1e-6
