"""Packs that run on a core each give the vectors of packs that run one after the other."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import embedlm
from embedlm.encode import engine
from embedlm.encode.parallel import on_cores
from embedlm.errors import NotFiniteError
from tests.command import sentences
from tests.models import DECODERS, ENCODERS

TEXTS = sentences(60, 3, 30)


@pytest.fixture
def cores(monkeypatch):
    """Have tiny models' packs run on two cores; return the threads that ran one."""
    monkeypatch.setattr(engine, "WIDTHS", (1, 1 << 20))
    before, ran = torch.get_num_threads(), set()
    whole = engine.pack_states

    def noted(*arguments, **options):
        ran.add(threading.current_thread().name)
        return whole(*arguments, **options)

    monkeypatch.setattr(engine, "pack_states", noted)
    torch.set_num_threads(2)
    yield ran
    torch.set_num_threads(before)


def loaded(folder, recipe="plain-mean", **options):
    return embedlm.load(folder, recipe, device="cpu", **options)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_all_architectures_give_the_same_vectors(model_folder, cores, name):
    model = loaded(model_folder(name))
    expected = model.encode(TEXTS)
    assert cores == {"MainThread"}  # one pack holds them all
    cores.clear()
    found = model.encode(TEXTS, batch_tokens=40)
    assert all(one.startswith("embedlm-core") for one in cores)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=5e-5)  # t5 is padded otherwise


def test_all_heads_come_in_order(tiny_llama, cores):
    heads = ["dense", "sparse", "multi_vector"]
    model = loaded(tiny_llama)
    expected, found = (
        model.encode(TEXTS, heads=heads),
        model.encode(TEXTS, heads=heads, batch_tokens=40),
    )
    assert "MainThread" in cores
    assert len(cores) > 1
    np.testing.assert_allclose(found["dense"], expected["dense"], atol=2e-6)
    assert abs(found["sparse"] - expected["sparse"]).max() < 1e-5
    for one, other in zip(found["multi_vector"], expected["multi_vector"], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_a_shared_prefix_is_run_once_and_so_one_after_the_other(tiny_llama, cores):
    model = loaded(tiny_llama, "prompteol")
    shown = [f"a long lead that all of the texts of this test begin with {text}" for text in TEXTS]
    expected = loaded(tiny_llama, "prompteol").encode(shown)
    cores.clear()
    np.testing.assert_allclose(model.encode(shown, batch_tokens=60), expected, atol=2e-6)
    assert cores == {"MainThread"}


def test_what_does_not_fit_is_halved_and_nothing_is_lost(tiny_llama, cores, monkeypatch):
    model = loaded(tiny_llama)
    expected = model.encode(TEXTS)
    whole, sizes = model.executor.run, []

    def short(rows, **options):
        tokens = sum(map(len, rows))
        sizes.append(tokens)
        if tokens > 24 and len(rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return whole(rows, **options)

    monkeypatch.setattr(model.executor, "run", short)
    np.testing.assert_allclose(model.encode(TEXTS, batch_tokens=80), expected, atol=2e-6)
    assert max(sizes) > 24


def test_an_error_is_the_first_text_s_and_other_calls_go_on(tiny_llama, cores):
    model = loaded(tiny_llama, dtype="float32")
    broken = loaded(tiny_llama, dtype="float32")
    with torch.no_grad():
        broken.backbone.network.get_input_embeddings().weight[10:] *= float("inf")
    with pytest.raises(NotFiniteError, match="text 0"):
        broken.encode(TEXTS, batch_tokens=40)
    np.testing.assert_allclose(model.encode(TEXTS, batch_tokens=40), model.encode(TEXTS), atol=2e-6)


def test_results_come_in_order_and_an_error_ends_the_rest():
    begun = []

    def squared(x):
        begun.append(x)
        if x == 7:
            raise ValueError("seven")
        return x * x

    found = on_cores(squared, range(1000), 3)
    assert [next(found) for _ in range(7)] == [x * x for x in range(7)]
    with pytest.raises(ValueError, match="seven"):
        next(found)
    assert len(begun) < 20
    assert not [one for one in threading.enumerate() if one.name.startswith("embedlm-core")]


def threads_of_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_other_threads_keep_their_cores_meanwhile_and_afterwards(cores):
    found = on_cores(lambda _: torch.get_num_threads(), range(20), 2)
    assert next(found) == 1
    assert threads_of_a_new_thread() == 2
    assert set(found) == {1}
    assert threads_of_a_new_thread() == torch.get_num_threads() == 2


ENDING = """
import atexit, threading, time
from embedlm.encode.parallel import on_cores

def told():
    print(sum(on_cores(lambda x: x * x, range(20), 2)))

def late():
    time.sleep(0.5)  # the main thread has ended
    told()

threading.Thread(target=late).start()
atexit.register(told)
"""


def test_a_job_goes_on_while_the_interpreter_ends():
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2470\n2470\n", "")
