"""LLM2Vec on a chat model: its turn stands around the text, and what closes the turn is pooled."""

import json
import shutil

import numpy as np
import pytest
import torch

import embedlm

TURNS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp": ("[INST] ", " [/INST]"),
    "meta-llama/Llama-2-7b-chat-hf": ("[INST] ", " [/INST]"),
    "princeton-nlp/Sheared-LLaMA-1.3B": ("", ""),
}
TEXTS = ["plants make food from light", "the lazy dog"]


@pytest.mark.parametrize("base", list(TURNS))
@pytest.mark.parametrize("instruction", [None, "Find the answer:"])
def test_the_turn_of_the_base_stands_around_the_text(tiny_llama, tmp_path, base, instruction):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "llm2vec_config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": base}))
    model = embedlm.load(folder, device="cpu")
    assert model.recipe.name == "llm2vec"
    found = model.encode(TEXTS, role="query", instruction=instruction)
    before, after = TURNS[base]
    lead = before + (f"{instruction} " if instruction else "")
    for vector, text in zip(found, TEXTS, strict=True):
        # As the reference: the whole is run, and the last tokens are averaged, as many as the text
        # and what follows it have by themselves.
        ids = model.tokenizer(lead + text + after)["input_ids"]
        count = len(model.tokenizer(text + after, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            states = model.backbone.run([ids])
        np.testing.assert_allclose(vector, states[-count:].mean(0).numpy(), atol=1e-5)
