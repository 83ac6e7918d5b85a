"""Adapters made by peft: merged, switched, saved, and refused where they do not fit."""

import json
import shutil

import numpy as np
import pytest
import torch

import embedlm
from embedlm.errors import InputError, ModelError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TEXTS = ["plants make food", "the quick brown fox jumps over the lazy dog", "light"]


def make_adapter(base, folder, *, seed=0, head=True, **options):
    """Write a LoRA adapter with random weights for a base model; return its folder."""
    loader = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    network = loader.from_pretrained(base)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], **options)
    tuned = peft.get_peft_model(network, config)
    torch.manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_llama, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(tiny_llama, root / name, seed=i) for i, name in enumerate("ab")]


def load(tiny_llama, adapters, **options):
    return embedlm.load(tiny_llama, "plain-mean", adapters=[str(a) for a in adapters], **options)


def test_merged_equals_peft_itself(tiny_llama, adapters):
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    tuned = peft.PeftModel.from_pretrained(network, adapters[0]).eval()
    model = load(tiny_llama, adapters[:1])
    for text in TEXTS:
        ids = torch.tensor(model.render([text]).ids)
        with torch.no_grad():
            states = tuned.base_model.model.model(input_ids=ids).last_hidden_state
        np.testing.assert_allclose(model.encode(text), states[0].mean(0), atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_switched_equals_merged_and_none_is_the_base(tiny_llama, tmp_path, dora):
    made = make_adapter(tiny_llama, tmp_path / "one", use_dora=dora)
    switched = load(tiny_llama, [made], merge=False)
    merged = load(tiny_llama, [made])
    base = embedlm.load(tiny_llama, "plain-mean").encode(TEXTS)
    np.testing.assert_allclose(switched.encode(TEXTS), merged.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(switched.encode(TEXTS, adapter=None), base, atol=1e-6)
    assert np.abs(merged.encode(TEXTS) - base).max() > 1e-2
    alone = np.stack([switched.encode(text, adapter="one") for text in TEXTS])
    np.testing.assert_allclose(alone, merged.encode(TEXTS), atol=1e-5)


def test_a_switched_adapter_runs_without_its_dropout(tiny_llama, tmp_path):
    made = make_adapter(tiny_llama, tmp_path / "one", lora_dropout=0.5)
    switched = load(tiny_llama, [made], merge=False)
    vectors = switched.encode(TEXTS, adapter="one")
    np.testing.assert_array_equal(switched.encode(TEXTS, adapter="one"), vectors)
    np.testing.assert_allclose(vectors, load(tiny_llama, [made]).encode(TEXTS), atol=1e-5)


def test_order_matters_and_both_count(tiny_llama, adapters):
    both = load(tiny_llama, adapters).encode(TEXTS)
    for one in adapters:
        assert np.abs(load(tiny_llama, [one]).encode(TEXTS) - both).max() > 1e-2


def test_an_adapter_of_the_body_alone_fits_too(tiny_llama, tmp_path):
    body = make_adapter(tiny_llama, tmp_path / "body", head=False)
    whole = make_adapter(tiny_llama, tmp_path / "whole", head=True)
    found = [load(tiny_llama, [one]).encode(TEXTS) for one in (body, whole)]
    np.testing.assert_allclose(*found, atol=1e-6)


def test_an_adapter_on_an_adapter_is_a_model(tiny_llama, adapters, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(adapters[1], second)
    written = json.loads((second / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = str(adapters[0])
    (second / "adapter_config.json").write_text(json.dumps(written))
    found = embedlm.load(second, "plain-mean").encode(TEXTS)
    np.testing.assert_allclose(found, load(tiny_llama, adapters).encode(TEXTS), atol=1e-6)


def test_a_head_is_loaded_under_the_adapter(tiny_llama, adapters):
    recipe = embedlm.Recipe.load("plain-mean").override({"heads": ["dense", "sparse"]})
    before = load(tiny_llama, adapters[:1]).encode(TEXTS)
    plain = embedlm.load(tiny_llama, recipe).encode(TEXTS, heads=["sparse"]).sparse.toarray()
    for merge in (True, False):
        model = embedlm.load(tiny_llama, recipe, adapters=[str(adapters[0])], merge=merge)
        found = model.encode(TEXTS)
        np.testing.assert_allclose(found.dense, before, atol=1e-5)
        assert np.abs(found.sparse.toarray() - plain).max() > 1e-2


def test_what_does_not_fit_is_told(tiny_llama, model_folder, adapters, tmp_path):
    with pytest.raises(ModelError, match=r"does not fit this model"):
        load(model_folder("gpt2"), adapters[:1])
    with pytest.raises(ModelError, match=r"is not there: no adapter_config.json"):
        load(tiny_llama, [tmp_path / "missing"])
    broken = tmp_path / "broken"
    shutil.copytree(adapters[0], broken)
    (broken / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"cannot be read"):
        load(tiny_llama, [broken])
    twin = tmp_path / "a"
    shutil.copytree(adapters[0], twin)
    with pytest.raises(ModelError, match="same name"):
        load(tiny_llama, [adapters[0], twin], merge=False)


def test_names_that_are_not_loaded_are_told(tiny_llama, adapters):
    switched = load(tiny_llama, adapters, merge=False)
    assert switched.adapters == ("a", "b")
    with pytest.raises(InputError, match=r"'c' is not loaded; allowed: None.*'a', 'b'"):
        switched.encode(TEXTS, adapter="c")
    changed = switched.recipe.override({"backbone.adapter_roles": {"query": "c", "document": "a"}})
    told = "query is served by 'c', which is not loaded; there are 'a', 'b'"
    with pytest.raises(InputError, match=told):
        switched.with_recipe(changed)
    paths = [str(adapter) for adapter in adapters]
    with pytest.raises(InputError, match=told):
        embedlm.load(tiny_llama, changed, adapters=paths, merge=False)
    with pytest.raises(InputError, match=r"merge=False"):
        load(tiny_llama, adapters).encode(TEXTS, adapter="a")


def test_untrained_latent_attention_depends_on_its_seed_alone(tiny_llama, tmp_path, caplog):
    def with_seed(seed):
        latent = {"latents": 8, "heads": 2, "head_width": 16, "seed": seed}
        recipe = embedlm.Recipe.load("nv-embed-v2").override({"pooling.latent": latent})
        return embedlm.load(tiny_llama, recipe=recipe)

    first, again, other = with_seed(1), with_seed(1), with_seed(2)
    assert "untrained" in caplog.text
    vectors = first.encode(TEXTS)
    np.testing.assert_array_equal(vectors, again.encode(TEXTS))
    assert np.abs(vectors - other.encode(TEXTS)).max() > 1e-2
    alone = np.stack([first.encode(text) for text in TEXTS])
    np.testing.assert_allclose(alone, vectors, atol=1e-5)
    first.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(embedlm.load(tmp_path / "saved").encode(TEXTS), vectors)


def test_the_command_chooses_an_adapter(run, tiny_llama, adapters, tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    options = ["-m", tiny_llama, "-r", "plain-mean", "--set", "backbone.merge=false"]
    options += [part for one in adapters for part in ("--adapter", one)]
    switched = load(tiny_llama, adapters, merge=False)
    out = tmp_path / "out.npy"
    for name, own in (("none", None), ("b", "b"), ("a", "a")):
        done = run("encode", tmp_path / "in.txt", "-o", out, *options, "--encode-adapter", name)
        assert done.code == 0, done.err
        wanted = switched.encode(TEXTS, adapter=own)
        np.testing.assert_allclose(np.load(out), wanted, atol=1e-5)
