"""PromptBERT's template denoising: the prompt's own state is taken out of a vector."""

import numpy as np
import pytest
import torch
import transformers

import embedlm
from embedlm.errors import InputError
from embedlm.schema.tuning import Stage
from embedlm.training.parameters import set_trainable
from embedlm.training.stages import _load_trainable
from embedlm.training.trainable import TextRequest

TEXTS = ["a river", "the engine of a boat was repaired", "music", "a river"]
RECIPE = embedlm.Recipe.load("promptbert").override({"pooling.denoise": True})


def reference(folder, texts):
    """Return mask states less those of the template without text, in the same places."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rendered = embedlm.load(folder, RECIPE, device="cpu").render(texts)
    before = len(tokenizer('This sentence : "')["input_ids"]) - 1  # without the closing SEP
    after = len(tokenizer(f'" means {tokenizer.mask_token} .')["input_ids"]) - 1  # without CLS
    rows = []
    for ids in map(list, rendered.ids):
        bare = ids[:before] + ids[-after:]
        places = [*range(before), *range(len(ids) - after, len(ids))]
        states = []
        for tokens, position in ((ids, list(range(len(ids)))), (bare, places)):
            with torch.no_grad():
                h_LD = network(
                    input_ids=torch.tensor([tokens]), position_ids=torch.tensor([position])
                ).last_hidden_state[0]
            states.append(h_LD[tokens.index(tokenizer.mask_token_id)])
        rows.append((states[0] - states[1]).numpy())
    return np.stack(rows)


def test_vectors_equal_transformers_with_the_positions_of_the_template(model_folder):
    folder = model_folder("bert")
    model = embedlm.load(folder, RECIPE, device="cpu", dtype="float32")
    found = model.encode(TEXTS, normalize=False)
    np.testing.assert_allclose(found, reference(folder, TEXTS), atol=2e-6)
    plain = embedlm.load(folder, "promptbert", device="cpu", dtype="float32").encode(TEXTS)
    assert np.abs(plain - found).max() > 1e-3
    alone = np.concatenate([model.encode([text], normalize=False) for text in TEXTS])
    np.testing.assert_allclose(found, alone, atol=2e-6)


def test_training_denoises_where_the_stage_says_so(model_folder):
    folder = model_folder("bert")
    stage = Stage.model_validate(
        {"name": "s", "objective": [{"kind": "simcse"}], "denoise": True, "data": [{"source": "x"}]}
    )
    model = _load_trainable(stage, str(folder), embedlm.Recipe.load("promptbert"), "cpu")
    set_trainable(model, stage)
    plan = model.plan_chunks([TextRequest(tuple(TEXTS), None)])
    v_ND = torch.cat([chunk() for chunk in plan.chunks])[plan.order_N]
    np.testing.assert_allclose(v_ND.detach().numpy(), reference(folder, TEXTS), atol=2e-6)
    v_ND.sum().backward()
    assert model.embedder.recipe.pooling.denoise is False


def test_a_text_without_a_prompt_cannot_be_denoised(tiny_llama):
    recipe = embedlm.Recipe.load("plain-last").override(
        {"pooling.denoise": True, "prompt.special_tokens": "none"}
    )
    with pytest.raises(InputError, match="no prompt around the text"):
        embedlm.load(tiny_llama, recipe, device="cpu").encode(["a river"])
