"""Tiny models that read images, made once."""

import pytest

import embedlm
from tests.vision_models import build


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory):
    """Return a function from a network's type to the folder of a tiny model of it."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = build(kind, tmp_path_factory.mktemp(kind) / "model")
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def seeing(vision_folder):
    """Return a tiny model by the recipe of Qwen3-VL-Embedding."""
    return embedlm.load(vision_folder("qwen3_vl"), "qwen3-vl-embedding", device="cpu")
