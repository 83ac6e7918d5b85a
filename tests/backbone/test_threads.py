"""Passes of different kinds at once, from many threads, give what they give one after another."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import embedlm
from embedlm.backbone import load_backbone, prepacked
from embedlm.encode import compiling
from embedlm.encode.executor import Executor
from embedlm.generation.generator import Sampling
from embedlm.generation.local import OwnGenerator
from embedlm.schema.recipe import Backbone as BackboneRecipe
from tests.backbone.test_adapters import make_adapter
from tests.backbone.test_backbone import TEXTS, relative

CALLS, THREADS = 200, 8


def at_once(calls, count=CALLS):
    """Run calls many times from eight threads, in a random order; all must be what they are alone.

    Each call is a function without arguments that returns an array.
    """
    wanted = [call() for call in calls]
    order = random.Random(0).choices(range(len(calls)), k=count)
    ready = threading.Barrier(THREADS)

    def run(share):
        ready.wait()
        return [(number, calls[number]()) for number in share]

    with ThreadPoolExecutor(THREADS) as pool:
        shares = [order[i::THREADS] for i in range(THREADS)]
        for number, found in (pair for part in pool.map(run, shares) for pair in part):
            np.testing.assert_allclose(found, wanted[number], atol=1e-5, err_msg=str(number))
    return wanted


def all_differ(arrays):
    pairs = [(a, b) for i, a in enumerate(arrays) for b in arrays[:i]]
    return all(a.shape != b.shape or np.abs(a - b).max() > 1e-3 for a, b in pairs)


@pytest.fixture(scope="module")
def adapters(tiny_llama, tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    return [str(make_adapter(tiny_llama, root / name, seed=i)) for i, name in enumerate("abc")]


def test_adapters_recipes_and_roles(tiny_llama, adapters):
    last = embedlm.Recipe.load("e5-mistral")
    first = embedlm.load(tiny_llama, last, adapters=adapters, merge=False)
    inner = first.with_recipe(last.override({"pooling.kind": "mean", "pooling.layer": -2}))
    assert inner.executor is first.executor
    assert inner.backbone is first.backbone
    calls = [
        lambda m=model, r=role, a=adapter: m.encode(TEXTS, role=r, adapter=a)
        for model, role in ((first, "query"), (inner, "document"))
        for adapter in ("a", "b", "c", None)
    ]
    assert all_differ(at_once(calls))


def states(backbone, **options):
    rows = [[5, 6, 7, 8, 9], [10, 11, 12], [13]]

    @torch.inference_mode()
    def call():
        return backbone.run(rows, **options).numpy()

    return call


def test_directions_layers_unseen_tokens_and_writing(tiny_llama):
    backbone = load_backbone(str(tiny_llama), BackboneRecipe(attention="bidirectional"), head=True)
    ways = [
        {"causal": causal, "layers": layers, "unseen": unseen}
        for causal in (True, False)
        for layers in ((-1,), (-2,), (1, -1))
        for unseen in ((), (2, 1, 0))
    ]
    chat = [[{"role": "user", "content": "what do plants make?"}]]
    written = []

    def write():
        generator = OwnGenerator(backbone)
        (answer,) = generator.generate(chat, Sampling(temperature=0, max_new_tokens=4), [0])
        written.append(answer)
        return np.zeros(1)

    def logits():
        with torch.inference_mode():
            return backbone.logits(backbone.run([[5, 6, 7]])).numpy()

    calls = [*(states(backbone, **way) for way in ways), logits]
    assert all_differ(at_once([*calls, write])[: len(calls)])
    assert len(set(written)) == 1
    assert written[0]


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma2", "gemma3", "gpt2", "qwen3"])
@pytest.mark.parametrize("unseen", [(), (1, 0, 0)])
def test_a_turned_pass_is_that_of_a_backbone_loaded_so(model_folder, name, unseen):
    loaded = {
        causal: load_backbone(
            str(model_folder(name)),
            BackboneRecipe(attention="causal" if causal else "bidirectional"),
        )
        for causal in (True, False)
    }
    for causal, backbone in loaded.items():
        turned = states(loaded[not causal], causal=causal, unseen=unseen)()
        np.testing.assert_allclose(turned, states(backbone, unseen=unseen)(), atol=1e-5)


def test_a_backbone_cannot_be_changed(tiny_llama):
    backbone = load_backbone(str(tiny_llama), BackboneRecipe())
    for name in ("head", "network", "causal", "adapters", "compiling", "anything"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(backbone, name, None)
    other = backbone.rebuilt(sharded=True)
    assert (backbone.sharded, other.sharded) == (False, True)


def test_views_share_all_weights(tiny_llama, adapters):
    model = embedlm.load(tiny_llama, adapters=adapters, merge=False, lm_head=True)
    backbone = model.backbone
    own = {p.data_ptr() for part in (backbone.network, backbone.head) for p in part.parameters()}
    for adapter in ("a", "b", None):
        for causal in (True, False):
            states(backbone, causal=causal, adapter=adapter, unseen=(1, 0, 0))()
            states(backbone, causal=causal, adapter=adapter, layers=(-2,))()
            backbone.language_model(causal=causal, adapter=adapter)
    views = list(backbone._views._views.values())
    assert len(views) > 12
    for view in views:
        assert {p.data_ptr() for p in view.parameters()} <= own
    assert len({id(view.config) for view in views}) == len(views)


@pytest.fixture
def packed(monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "LEAST", 0)
    monkeypatch.setattr(prepacked, "_gains", lambda dtype: True)
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache"))


def test_weights_are_packed_and_unpacked_while_threads_encode(model_folder, packed):
    model = embedlm.load(model_folder("llama"), "plain-mean")
    inner = model.with_recipe(model.recipe.override({"pooling.layer": -2}))
    ended = threading.Event()

    def turn():
        while not ended.is_set():
            model.executor.compiling.stop()

    thread = threading.Thread(target=turn)
    wanted = [one.encode(TEXTS) for one in (model, inner)]
    assert model.executor.compiling.packed
    thread.start()
    try:
        calls = [lambda: model.encode(TEXTS), lambda: inner.encode(TEXTS)]
        found = at_once(calls)
    finally:
        ended.set()
        thread.join()
    assert max(relative(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-5


def test_threads_encode_while_layers_are_compiled(model_folder, packed):
    model = embedlm.load(model_folder("llama"), "plain-mean")
    inner = model.with_recipe(model.recipe.override({"pooling.layer": -2}))
    calls = [lambda m=m, n=n: m.encode(TEXTS[:n]) for m in (model, inner) for n in (1, 3, 5)]
    wanted = [call() for call in calls]
    model.executor.compiling.mode = "on"
    with ThreadPoolExecutor(THREADS) as pool:
        first = [pool.submit(calls[i % len(calls)]) for i in range(40)]
        for number, one in enumerate(first):
            assert relative(one.result(), wanted[number % len(calls)]) < 1e-4
    assert model.executor.compiling.active
    for found, before in zip(at_once(calls, 60), wanted, strict=True):
        assert relative(found, before) < 1e-4


def test_a_budget_is_learnt_once_for_a_network(tiny_llama):
    executor = Executor(load_backbone(str(tiny_llama), BackboneRecipe()))
    assert executor.budget() > executor.did_not_fit(1000) == 500
    assert executor.did_not_fit(800) == 250
    assert (executor.budget(), executor.budget(100), executor.budget(900)) == (250, 100, 250)
