"""Models that cannot be loaded, or cannot do what is asked, are refused in one clear line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import embedlm
from embedlm.backbone import sizes
from embedlm.backbone.config import is_local, unloadable
from embedlm.errors import ModelError, RecipeError, UnsupportedError
from tests.command import ROOT
from tests.models import build


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu")


# -- texts ----------------------------------------------------------------------------------------


def test_a_folder_that_is_no_model(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(ModelError, "is no model: it has no config.json", str(tmp_path / "empty"))
    (tmp_path / "empty" / "notes.txt").write_text("x")
    refused(ModelError, "is no model: it has no config.json", str(tmp_path / "empty"), None)
    file = tmp_path / "empty" / "notes.txt"
    refused(ModelError, "is not a folder; give a model folder", str(file))
    refused(ModelError, "is not a folder; give a model folder", str(tmp_path / "none"))
    refused(ModelError, "is not a folder; give a model folder", "./none")


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_missing_file(refused, copy, missing):
    (copy / missing).unlink()
    refused(ModelError, "model", str(copy))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "list", "number", "binary"])
def test_a_corrupt_json_file(refused, copy, file, damage):
    text = (copy / file).read_bytes()
    (copy / file).write_bytes(
        {
            "cut": text[: len(text) // 2],
            "empty": b"",
            "list": b"[]",
            "number": b"5",
            "binary": b"\x80\xff\x00",
        }[damage]
    )
    refused(ModelError, re.escape(str(copy)), str(copy))


@pytest.mark.parametrize("source", ["./local", "owner/name"])
def test_a_missing_package_is_no_damage(source):
    told = str(unloadable(source, "weights", ImportError("compressed-tensors>=0.15 is required")))
    assert "package that is not installed" in told
    assert "compressed-tensors>=0.15 is required" in told
    assert "corrupt" not in told
    assert "network" not in told


@pytest.mark.parametrize("damage", ["half", "head", "empty", "garbage", "page", "pointer"])
def test_corrupt_weights(refused, copy, damage):
    file = copy / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(
        {
            "half": data[: len(data) // 2],
            "head": data[:20],
            "empty": b"",
            "garbage": b"\xff" * len(data),
            "page": b"<html>404</html>",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        }[damage]
    )
    refused(ModelError, f"weights in '{re.escape(str(copy))}' cannot be loaded", str(copy))


def test_weights_that_do_not_fit_the_config(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    refused(ModelError, "do not fit its config", str(copy))
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    refused(ModelError, r"do not fit its config: .* of another shape, e\.g\. .*mlp", str(copy))


@pytest.mark.parametrize(
    ("key", "size", "tensor"),
    [
        ("hidden_size", 1 << 22, "embed_tokens"),
        ("vocab_size", 2**31 - 1, "embed_tokens"),
        ("intermediate_size", 1 << 30, "mlp"),
        ("head_dim", 1 << 28, "self_attn"),
    ],
)
def test_sizes_that_the_files_do_not_have_take_no_memory(refused, copy, key, size, tensor):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, key: size}))
    told = rf"do not fit its config, which asks for .*; \S*{tensor}\S*, for example, is \["
    refused(ModelError, told, str(copy))


def test_more_layers_than_a_network_can_have_are_refused_before_they_are_built(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    for count in (2001, 2**31 - 1):
        (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
        refused(ModelError, "num_hidden_layers is .* from 1 to 2000", str(copy))


def test_positions_below_none_are_refused(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    for count in (-1, 0):
        config["max_position_embeddings"] = count
        (copy / "config.json").write_text(json.dumps(config))
        assert embedlm.load(copy, "plain-mean", device="cpu").max_length == 200
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": -5}))
    refused(ModelError, "max_position_embeddings is -5; allowed is a whole number", str(copy))


def test_a_window_that_holds_no_token_is_refused(refused, tmp_path):
    folder = build("mistral-sliding", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for window in (0, -1):
        (folder / "config.json").write_text(json.dumps({**config, "sliding_window": window}))
        refused(ModelError, f"sliding_window is {window}; allowed is a whole", str(folder))
    unlimited = {"pooling": {"kind": "mean"}, "backbone": {"sliding_window": "off"}}
    assert embedlm.load(folder, unlimited, device="cpu").encode("fox").shape == (32,)


def test_a_missing_shard(refused, copy):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    names = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    names["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(ModelError, re.escape(str(copy)), str(copy))
    (copy / "model.safetensors.index.json").write_text("{broken")
    refused(ModelError, re.escape(str(copy)), str(copy))


def test_a_missing_shard_is_no_config_of_other_sizes(copy, monkeypatch):
    monkeypatch.setattr(sizes, "_FEW", 0)
    (copy / "model.safetensors").unlink()
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    save_file({"lm_head.weight": torch.zeros(1, 1)}, copy / first, {"format": "pt"})
    index = {"weight_map": {"lm_head.weight": first, "model.embed_tokens.weight": second}}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, **index}))
    with pytest.raises(ModelError) as caught:
        embedlm.load(copy, "plain-mean", device="cpu")
    assert "fit its config" not in str(caught.value)


def test_an_architecture_that_is_not_known(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    for changes, told in (
        ({"model_type": "llamma"}, "llamma"),
        ({"model_type": None}, "model"),
        ({"hidden_size": "wide"}, "model"),
        ({"num_attention_heads": 0}, "model"),
    ):
        (copy / "config.json").write_text(json.dumps({**config, **changes}))
        refused(ModelError, told, str(copy))


def test_a_model_that_wants_its_own_code_run(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    code = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "x", "auto_map": code}))
    for name in ("configuration_x", "modeling_x"):
        (copy / f"{name}.py").write_text(f"open({str(copy / 'ran')!r}, 'w').close()")
    refused(UnsupportedError, "never runs remote code", str(copy))
    assert not (copy / "ran").exists()


def test_a_layout_file_that_cannot_be_read(refused, copy):
    (copy / "modules.json").write_text("{broken")
    refused(ModelError, r"modules\.json cannot be read as JSON", str(copy), None)
    for wrong in ("{}", '[{"path": "x"}]', "5", '[{"type": "x.y.Strange", "path": ""}]'):
        (copy / "modules.json").write_text(wrong)
        refused(ModelError, "modules.json|Strange", str(copy), None)
    (copy / "modules.json").unlink()
    (copy / "embedlm.yaml").write_text("pooling: {kind: median}")
    refused(RecipeError, "given 'median'", str(copy), None)


@pytest.mark.parametrize(
    ("architecture", "options"), [("llama", {"head": False}), ("t5", {}), ("bert", {"head": False})]
)
def test_a_sparse_head_without_a_language_model_head(
    refused, run, model_folder, tmp_path, architecture, options
):
    folder = str(model_folder(architecture, **options))
    told = "no language-model head"
    (tmp_path / "sparse.yaml").write_text("heads: [sparse]")
    refused(UnsupportedError, told, folder, str(tmp_path / "sparse.yaml"))
    loaded = embedlm.load(folder, "plain-mean", device="cpu")
    before = loaded.encode(["light"])
    with pytest.raises(UnsupportedError, match=told):
        loaded.encode(["light"], heads=["sparse"])
    np.testing.assert_array_equal(loaded.encode(["light"]), before)
    (tmp_path / "in.txt").write_text("light\n")
    line = ("-m", folder, "-r", "plain-mean", "--heads", "sparse", "-o", tmp_path / "out.npz")
    assert told in run("encode", tmp_path / "in.txt", *line).one_line()


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"HF_HUB_OFFLINE": "1"}, id="offline"),
        pytest.param(
            {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}, id="unreachable"
        ),
    ],
)
def test_a_hub_id_without_network(tmp_path, environment):
    done = subprocess.run(
        [sys.executable, "-m", "embedlm.cli", "similarity", "a", "b", "-m", "nobody/nothing"],
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=120,
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
    )
    assert done.returncode == 2
    told = done.stderr.decode()
    assert told.startswith("embedlm: cannot load 'nobody/nothing' from the Hugging Face hub")
    assert told.count("\n") == 1
    assert "give the path of a local folder" in told
    assert "Retrying" not in told


@pytest.mark.parametrize("name", ["general", "all-MiniLM-L6-v2", "models/mine/best"])
def test_a_folder_that_is_not_there_is_not_asked_for_on_the_hub(refused, name):
    told = f"no folder '{name}' here; give .* the form owner/name .* short names"
    for recipe in ("plain-mean", None):
        refused(ModelError, told, name, recipe)


def test_the_nearest_builtin_model_is_named(refused):
    refused(ModelError, "no folder 'builtn' here.* Did you mean 'builtin'", "builtn", None)


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased", "owner/name"])
def test_what_may_be_a_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local(name)
    (tmp_path / name).mkdir(parents=True)
    assert is_local(name)


def test_what_is_no_hub_id(refused, tmp_path):
    refused(ModelError, "a//b", "a//b")
    refused(ModelError, "no such model!", "no such model!")
    refused(ModelError, "model", "")


def test_devices_and_types_that_are_not_there(refused, tiny_llama):
    refused(ModelError, "device 'gpu' is not known; allowed: cpu", tiny_llama, device="gpu")
    refused(ModelError, "device 'meta' is not known", tiny_llama, device="meta")
    refused(ModelError, "dtype 'float8' is not known; allowed: auto", tiny_llama, dtype="float8")


def test_adapters_that_are_not_there(run, tiny_llama, tmp_path):
    with pytest.raises(ModelError):
        embedlm.load(tiny_llama, "plain-mean", adapters=[str(tmp_path / "none")])
    run("render", "a", "-m", tiny_llama, "--adapter", tmp_path / "none").one_line()


class Payload:
    """Unpickled, it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_malicious_pickle_is_not_run_and_nobody_is_told_to_run_it(model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder("llama"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({"x": Payload(tmp_path / "run")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="nothing of it was run") as refused:
        embedlm.load(folder)
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["[]", "null", "5", '"x"'])
def test_a_damaged_generation_config_is_a_model_error(model_folder, tmp_path, text):
    folder = tmp_path / "model"
    shutil.copytree(model_folder("llama"), folder)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match="cannot be loaded"):
        embedlm.load(folder)
