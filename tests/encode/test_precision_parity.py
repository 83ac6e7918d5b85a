"""Truncation, quantisation and late interaction equal sentence-transformers 6."""

import numpy as np
import pytest

import embedlm
from embedlm.encode.precision import truncate
from embedlm.readout.similarity import cosine, maxsim, maxsim_pairwise
from tests.parity import expected, folder, needs_parity

pytestmark = needs_parity
CASE = "14_truncate_quantize"


@pytest.mark.parametrize("dim", [64, 32, 16, 8])
def test_truncation(dim):
    given, wanted = expected(CASE, "inputs.npz")["embeddings"], expected(CASE)
    cut = truncate(given, dim, renormalize=False)
    np.testing.assert_allclose(cut, wanted[f"truncate_{dim}"], atol=1e-6)
    unit = truncate(given, dim, renormalize=True)
    np.testing.assert_allclose(unit, wanted[f"truncate_normalize_{dim}"], atol=1e-6)
    close = cosine(cut[:20], cut[:20])
    np.testing.assert_allclose(close, wanted[f"cos_sim_first20_{dim}"], atol=1e-6)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("source", ["self", "calibrated", "ranges"])
def test_bytes(precision, source):
    given = expected(CASE, "inputs.npz")
    more = {
        "self": {},
        "calibrated": {"calibration": given["calibration"]},
        "ranges": {"ranges": given["ranges"]},
    }[source]
    found = embedlm.quantize(given["embeddings"], precision, **more)
    wanted = expected(CASE)[f"{precision}_{source}"]
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("precision", ["binary", "ubinary", "float32"])
def test_bits_and_floats(precision):
    found = embedlm.quantize(expected(CASE, "inputs.npz")["embeddings"], precision)
    np.testing.assert_array_equal(found, expected(CASE)[precision])
    assert found.dtype == expected(CASE)[precision].dtype


def test_maxsim():
    given, wanted = expected("16_maxsim", "inputs.npz"), expected("16_maxsim")
    sides = {}
    for side in ("query", "document"):
        tokens, lengths = (given[k] for k in _keys(given, side))
        sides[side] = np.split(tokens, np.cumsum(lengths)[:-1])
    found = maxsim(sides["query"], sides["document"])
    np.testing.assert_allclose(found, wanted["maxsim"], atol=1e-5)
    even = maxsim(sides["query"], sides["document"], length_normalize=True)
    np.testing.assert_allclose(even, wanted["maxsim_length_normalized"], atol=1e-5)
    pairs = maxsim_pairwise(sides["query"], sides["document"])
    np.testing.assert_allclose(pairs, wanted["maxsim_pairwise"], atol=1e-5)


def _keys(given, side):
    names = [name for name in given.files if side[:3] in name.lower()]
    tokens = next(name for name in names if given[name].ndim == 2)
    return tokens, next(name for name in names if given[name].ndim == 1)


def test_the_fixture_is_there():
    assert (folder(CASE) / "inputs.npz").is_file()
