"""Scores and vectors are kept under a model's identity: whatever changes them changes it."""

import json

import pytest
from safetensors.torch import load_file, save_file

import embedlm
from embedlm.encode.identity import revision


def change_json(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def change_row(folder):
    """Change a token that a sample of the largest matrix misses."""
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name][39] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_neuron(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name][:, 5] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
CHANGES = {
    "a row": change_row,
    "a neuron": change_neuron,
    "rope": lambda f: change_json(
        f / CONFIG, rope_parameters={"rope_theta": 500.0, "rope_type": "default"}
    ),
    "activation": lambda f: change_json(f / CONFIG, hidden_act="gelu"),
    "end": lambda f: change_json(f / TOKENIZER, eos_token="<pad>"),
    "chat template": lambda f: change_json(f / TOKENIZER, chat_template="{{ messages }}"),
    "longest text": lambda f: change_json(f / TOKENIZER, model_max_length=7),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_vectors_changes_the_revision(tiny_llama, copy, change):
    before = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    assert revision(embedlm.load(copy, "plain-mean", device="cpu")) == revision(before)
    change(copy)
    assert revision(embedlm.load(copy, "plain-mean", device="cpu")) != revision(before)
