"""Paths in a folder's files that lead out of it are refused, quickly and without reading them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import embedlm
from embedlm.errors import ModelError
from tests.command import ROOT
from tests.persistence.fuzz_layouts import LAYOUTS

OUTSIDE = ["../other", "/dev/zero", "a/../../b", "C:\\x", "linked"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "dense"
    LAYOUTS["dense"].make(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    """Return a folder with a link that leads out of it."""
    copy = shutil.copytree(sound, tmp_path / "model")
    for place in (copy, copy / "2_Dense"):
        os.symlink("/dev", place / "linked")
    return copy


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_of_modules(folder, path):
    file = folder / "modules.json"
    modules = json.loads(file.read_text())
    modules[2]["path"] = path
    file.write_text(json.dumps(modules))
    told = r"modules\.json names the path .* inside its folder"
    with pytest.raises(ModelError, match=told):
        embedlm.load(folder, device="cpu")
    recipe = {"name": "mine", "heads": [{"dense": {"projection": "auto"}}]}
    with pytest.raises(ModelError, match=told):
        embedlm.load(folder, recipe, device="cpu")


@pytest.mark.parametrize("path", [path.replace("linked", "linked/zero") for path in OUTSIDE])
@pytest.mark.parametrize("place", ["", "2_Dense"])
def test_paths_of_indexes(folder, place, path):
    (folder / place / "model.safetensors").unlink()
    index = folder / place / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"linear.weight": path}}))
    with pytest.raises(ModelError, match=r"index\.json names the path .* inside its folder"):
        embedlm.load(folder, device="cpu")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json (has no weight_map|holds list)"):
        embedlm.load(folder, device="cpu")


def test_a_part_that_is_not_there(folder):
    (folder / "2_Dense" / "model.safetensors").unlink()
    index = folder / "2_Dense" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"linear.weight": "other.safetensors"}}))
    with pytest.raises(ModelError, match=r"names a file that cannot be read: .*other\.safetensors"):
        embedlm.load(folder, device="cpu")


def test_a_refusal_takes_little_time_and_memory(folder):
    """Beyond what loading the libraries takes."""
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "/dev/zero"}}))
    script = """if True:
        import resource, sys, time, torch, transformers, embedlm
        embedlm.load()
        used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before, start = used(), time.process_time()
        try:
            embedlm.load(sys.argv[1], device="cpu")
        except embedlm.errors.ModelError:
            print(time.process_time() - start, (used() - before) / 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 1
    assert mebibytes < 200


def test_a_tokenizer_of_another_model(sound, tmp_path):
    from transformers import AutoModel

    folder = shutil.copytree(sound, tmp_path / "model")
    network = AutoModel.from_pretrained(folder)
    network.resize_token_embeddings(20)
    network.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"gives token \d+ .* config\.json has vocab_size 20"):
        embedlm.load(folder, device="cpu").encode(["plants make food"])
