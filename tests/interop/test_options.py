"""Options as other libraries spell them, and values that are none."""

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, recipe="plain-mean", device="cpu")


def test_no_precision_is_float32(model):
    vectors = model.encode(["light"], precision=None)
    np.testing.assert_array_equal(vectors, model.encode(["light"]))


@pytest.mark.parametrize("name", ["dim", "max_length", "batch_tokens"])
@pytest.mark.parametrize("value", ["5", "x", 0, True, 2.5])
def test_a_number_that_is_none_is_refused(model, name, value):
    with pytest.raises(InputError, match=name):
        model.encode(["light"], **{name: value})


def test_numpy_numbers_are_numbers(model):
    assert model.encode(["light"], dim=np.int64(4)).shape == (1, 4)


def test_one_string_is_no_stream(model):
    with pytest.raises(InputError, match="single text"):
        list(model.stream("ab"))
