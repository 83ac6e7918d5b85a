"""An adapter's config means the same on a network with and without the head it was trained with."""

import re

import numpy as np
import pytest
import transformers

import embedlm
from embedlm.backbone import weights
from tests.backbone.test_adapter_kinds import TEXTS, lora, make, means

peft = pytest.importorskip("peft")

LAYERS = {
    "llama": ("model.", "layers.{}.self_attn.{}_proj", "layers.1.input_layernorm"),
    "bert": ("bert.", "encoder.layer.{}.attention.self.{}", "embeddings.LayerNorm"),
}
SHORT = {"llama": ("q", "v"), "bert": ("query", "value")}


def configs(kind, lead):
    """Return configs that name modules of a network in full, its names beginning with `lead`."""
    _, path, norm = LAYERS[kind]
    first, second = SHORT[kind]
    own = [path.format("0", name).rpartition(".")[2] for name in (first, second)]
    one, other = lead + path.format(0, first), lead + path.format(1, second)
    every = re.escape(lead + path).replace(r"\{\}", "{}").format(r"\d", f"({first}|{second})")
    short = {"target_modules": own}
    return {
        "alpha": lora(**short, alpha_pattern={one: 64, other: 2}),
        "alpha of a pattern": lora(**short, alpha_pattern={f"^{re.escape(one)}": 64}),
        "rank": lora(**short, rank_pattern={other: 2}),
        "list": lora(target_modules=[one, other]),
        "pattern": lora(target_modules=every),
        "left out": lora(**short, exclude_modules=[one]),
        "left out by a pattern": lora(**short, exclude_modules=rf"{re.escape(lead)}.*0.*"),
        "layers": lora(**short, layers_to_transform=[1]),
        "parameter": lora(target_modules=[], target_parameters=[f"{one}.weight"]),
        "saved": lora(**short, modules_to_save=[lead + norm]),
        "loha": peft.LoHaConfig(
            r=4, target_modules=own, alpha_pattern={one: 64}, init_weights=False
        ),
        "lokr": peft.LoKrConfig(
            r=4, target_modules=own, layers_to_transform=[1], init_weights=False
        ),
        "ia3": peft.IA3Config(
            target_modules=[*own, one], feedforward_modules=rf".*{re.escape(one)}"
        ),
        "fourier": peft.FourierFTConfig(
            n_frequency=8, target_modules=own, n_frequency_pattern={one: 16}
        ),
    }


WAYS = [
    ("llama", True, 0),  # trained with the head, and run without it
    ("llama", True, weights.CHEAP_HEAD),
    ("llama", False, weights.CHEAP_HEAD),  # trained without the head, and run with it
    ("bert", False, 0),
]


@pytest.mark.parametrize("name", configs("llama", ""))
@pytest.mark.parametrize(("kind", "head", "cheap"), WAYS)
def test_names_in_full_equal_peft(model_folder, tmp_path, monkeypatch, kind, head, cheap, name):
    monkeypatch.setattr(weights, "CHEAP_HEAD", cheap)
    if name in ("layers", "lokr") and kind == "llama" and not head:
        pytest.skip("peft counts layers below another module alone")
    base = model_folder(kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    config = configs(kind, LAYERS[kind][0] if head else "")[name]
    reference = means(make(base, tmp_path / "one", config, head=head), tokenizer)
    plain = embedlm.load(base, "plain-mean").encode(TEXTS)
    assert np.abs(reference - plain).max() > 1e-4
    for merge in (True, False):
        model = embedlm.load(base, "plain-mean", adapters=[str(tmp_path / "one")], merge=merge)
        np.testing.assert_allclose(model.encode(TEXTS), reference, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved")
    np.testing.assert_allclose(again.encode(TEXTS), reference, atol=1e-5)


@pytest.mark.parametrize("name", configs("bert", ""))
def test_adapters_of_masked_language_models_equal_peft(model_folder, tmp_path, name):
    base = model_folder("bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    masked = transformers.AutoModelForMaskedLM
    made = make(base, tmp_path / "one", configs("bert", "bert.")[name], loader=masked)
    reference = means(made, tokenizer)
    for merge in (True, False):
        model = embedlm.load(base, "plain-mean", adapters=[str(tmp_path / "one")], merge=merge)
        np.testing.assert_allclose(model.encode(TEXTS), reference, atol=1e-5)


def test_a_second_adapter_is_put_beside_the_first_by_full_names(model_folder, tmp_path):
    base = model_folder("llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    every = configs("llama", "model.")
    for name in ("alpha", "pattern"):
        reference = means(make(base, tmp_path / name, every[name], head=True), tokenizer)
    folders = [str(tmp_path / name) for name in ("alpha", "pattern")]
    model = embedlm.load(base, "plain-mean", adapters=folders, merge=False)
    np.testing.assert_allclose(model.encode(TEXTS, adapter="pattern"), reference, atol=1e-5)
