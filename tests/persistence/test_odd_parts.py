"""Layers beside a network whose files hold something else are refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import embedlm
from embedlm.backbone.stored import expanded_tensors
from embedlm.errors import ModelError, RecipeError, UnsupportedError
from embedlm.readout.latent import load_latent
from embedlm.schema.recipe import Latent

PROJECTED = {"heads": [{"dense": {"projection": "auto"}}]}


@pytest.fixture
def copied(model_folder, tmp_path):
    """Return a function from an architecture's name to a folder of its own."""
    return lambda name: shutil.copytree(model_folder(name), tmp_path / "copy")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], torch.zeros(2), {1: torch.zeros(1)}, {"linear.weight": {"a": 1}}],
    ids=["list", "tensor", "number", "nested"],
)
def test_a_pickle_that_holds_no_named_tensors(copied, content):
    folder = copied("llama")
    (folder / "2_Dense").mkdir()
    config = {"in_features": 32, "out_features": 8, "activation_function": "torch.nn.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    torch.save(content, folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin .* something else than tensors"):
        embedlm.load(folder, embedlm.Recipe.load("plain-mean").override(PROJECTED))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("sparse_linear.pt", {"wrong": torch.zeros(1, 32)}),
        ("sparse_linear.pt", {"weight": torch.zeros(3, 32), "bias": torch.zeros(3)}),
        ("sparse_linear.pt", {"weight": torch.tensor(1.0)}),
        ("colbert_linear.pt", {"weight": torch.zeros(8, 16)}),
        ("colbert_linear.pt", {"weight": torch.zeros(8, 32), "more": torch.zeros(1)}),
    ],
)
def test_token_layers_of_another_form(copied, file, content):
    folder = copied("bert")
    torch.save({"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}, folder / "sparse_linear.pt")
    torch.save({"weight": torch.zeros(8, 32)}, folder / "colbert_linear.pt")
    assert embedlm.load(folder, device="cpu").recipe.name == "bge-m3"
    torch.save(content, folder / file)
    with pytest.raises(ModelError, match=rf"the layer {file} in .* parts are not of one model"):
        embedlm.load(folder, device="cpu")


def latent_of(**sizes):
    return embedlm.Recipe.load("plain-mean").override({"pooling.latent": sizes})


def test_latents_that_the_files_do_not_hold(copied, tmp_path):
    recipe = latent_of(latents=8, heads=2, head_width=16)
    embedlm.load(copied("llama"), recipe, device="cpu").save_pretrained(tmp_path / "saved")
    for sizes in ({"latents": 65_536, "heads": 1024, "head_width": 65_536}, {"latents": 9}):
        wrong = latent_of(**{"latents": 8, "heads": 2, "head_width": 16, **sizes})
        with pytest.raises(ModelError, match=r"the latent attention .* does not fit .* there is"):
            embedlm.load(tmp_path / "saved", wrong, device="cpu")
    for sizes in ({"latents": 10**11}, {"seed": 1 << 70}, {"head_width": 0}):
        with pytest.raises(RecipeError, match=rf"pooling\.latent\.{next(iter(sizes))}"):
            latent_of(**sizes)


@pytest.mark.parametrize("sizes", [{}, {"num_latents_value": "many"}, {"num_latents_value": 10**9}])
def test_a_published_config_without_usable_sizes(tmp_path, sizes):
    weights = {"latent_attention_model.latents": torch.zeros(8, 32)}
    save_file(weights, tmp_path / "model.safetensors")
    config = {"num_cross_heads": 2, "cross_dim_head": 16, **sizes}
    (tmp_path / "config.json").write_text(json.dumps({"latent_attention_config": config}))
    with pytest.raises(ModelError, match=r"latent_attention_config in config\.json .* latents"):
        load_latent(str(tmp_path), 32, Latent())


def test_a_name_is_no_scale_by_its_looks(tmp_path):
    names = ("layer_scale_parameter", "x", "x_scale")
    save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert sorted(expanded_tensors(str(tmp_path), torch.float32)) == [*names]


def test_queries_are_not_filled_up_beyond_the_positions(model_folder):
    recipe = embedlm.Recipe.load("colbert").override({"prompt.expansion.length": 300})
    with pytest.raises(UnsupportedError, match="up to 300 tokens, and the model has positions for"):
        embedlm.load(model_folder("bert"), recipe, device="cpu")
    with pytest.raises(RecipeError, match=r"prompt\.expansion\.length"):
        recipe.override({"prompt.expansion.length": 10**12})
