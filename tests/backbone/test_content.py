"""A model is known by what its files hold, and not by where they lie."""

import shutil

import pytest

from embedlm.backbone.content import content_digest
from embedlm.generation.local import model_name
from embedlm.training.teacher_vectors import identity_of


def names(source):
    """Return what a model is called by all that keep something under its content."""
    return content_digest(source), model_name(str(source)), identity_of(str(source))


def all_differ(a, b):
    return all(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("size", [5 << 20, 70 << 20])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_model_tuned_in_one_layer_is_another_one(tmp_path, size, as_file):
    folder = tmp_path / "one"
    folder.mkdir()
    weights = folder / ("model.gguf" if as_file else "model.safetensors")
    content = bytearray(size)
    weights.write_bytes(content)
    before = names(weights if as_file else folder)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    assert names(elsewhere / weights.name if as_file else elsewhere) == before
    start = size // 3
    content[start : start + (1 << 16)] = b"\1" * (1 << 16)
    weights.write_bytes(content)
    assert all_differ(names(weights if as_file else folder), before)


def test_what_lies_below_the_folder_counts_and_its_card_does_not(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = names(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert names(tmp_path) == before
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"more")
    assert all_differ(names(tmp_path), before)


def test_the_folder_that_stands_for_a_gguf_file_is_that_file(tmp_path):
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF and so on")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(file)
    (folder / "config.json").write_text("{}")
    assert names(folder) == names(file)
    assert content_digest("some/hub-id") is None
