"""What the tests of jobs share: a model, a file of texts, and commands in other processes."""

import pytest

import embedlm
from tests.command import sentences, server


@pytest.fixture(scope="package")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu", lm_head=True)


@pytest.fixture(scope="package")
def command():
    return server()


@pytest.fixture
def source(tmp_path):
    """Return a file of 300 texts, each a line."""
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{text}\n" for text in sentences(300)))
    return path
