"""A model goes through pickles, copies, forks and joblib's processes with the same vectors."""

import copy
import multiprocessing
import pickle

import numpy as np
import pytest

import embedlm

TEXTS = ["plants make food", "light", "the quick brown fox"]


@pytest.fixture(scope="module")
def model(tiny_llama):
    recipe = {"name": "roles", "prompt": {"query": "ask: {text}", "document": "{text}"}}
    model = embedlm.load(tiny_llama, recipe, device="cpu", lm_head=True)
    return model.fit_ranges(["a", "b c", *TEXTS])


def encoded(model, options):
    """Return vectors; at the top of the module, so that other processes find it."""
    return np.asarray(model.encode(TEXTS, **options))


OPTIONS = [{}, {"role": "query", "normalize": True, "dim": 8}, {"precision": "int8"},
           {"precision": "ubinary"}]  # fmt: skip


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_pickles_and_copies(model, used):
    if used:
        model.encode(TEXTS * 50)
    copies = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)]
    for options in OPTIONS:
        for other in copies:
            np.testing.assert_array_equal(encoded(other, options), encoded(model, options))
    assert copies[0].recipe == model.recipe


def test_joblib_processes(model):
    joblib = pytest.importorskip("joblib")
    # A method of the model: what this file defines is not known in loky's processes.
    jobs = [joblib.delayed(model.encode)(TEXTS, **options) for options in OPTIONS]
    for backend in ("loky", "threading"):
        found = joblib.Parallel(n_jobs=2, backend=backend)(jobs)
        for options, vectors in zip(OPTIONS, found, strict=True):
            np.testing.assert_array_equal(vectors, encoded(model, options))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_fork(model):
    model.encode(TEXTS)  # its kernels and threads are there before
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(encoded, [(model, options) for options in OPTIONS])
    for options, vectors in zip(OPTIONS, found, strict=True):
        np.testing.assert_array_equal(vectors, encoded(model, options))
