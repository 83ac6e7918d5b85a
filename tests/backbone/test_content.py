"""A model is known by what its files hold, and not by where they lie."""

import json
import shutil

import pytest

from embedlm.backbone import builtin
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


@pytest.mark.parametrize("name", ["builtin", "builtin-base"])
def test_a_built_in_model_is_known_by_its_files(tmp_path, monkeypatch, name):
    shipped = builtin.BUILTIN[name]
    assert names(name) == names(shipped)
    monkeypatch.setitem(builtin.BUILTIN, name, tmp_path / shipped.name)
    (tmp_path / shipped.name).mkdir()
    (tmp_path / shipped.name / "model.safetensors").write_bytes(b"another version")
    assert all_differ(names(name), names(shipped))


@pytest.mark.parametrize("steps", [1, 2])
def test_an_adapter_is_another_model_on_another_base(tmp_path, steps):
    base, source = tmp_path / "base", tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    for step in range(steps):
        below, source = source, tmp_path / f"adapter{step}"
        source.mkdir()
        facts = {"base_model_name_or_path": str(below), "peft_type": "LORA"}
        (source / "adapter_config.json").write_text(json.dumps(facts))
        (source / "adapter_model.safetensors").write_bytes(b"change")
    before = names(source)
    (base / "model.safetensors").write_bytes(b"WEIGHTS")
    assert all_differ(names(source), before)
    shutil.rmtree(base)
    assert all(names(source))
