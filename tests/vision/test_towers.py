"""Networks with a tower for texts and one for images, against transformers' own features."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as tf

import embedlm
from embedlm.errors import InputError, ModelError, UnsupportedError
from embedlm.persistence import recognise
from tests.vision_models import build_clip, build_siglip, picture

TEXTS = ["how do plants make food?", "light", "the quick brown fox " * 30]
IMAGES = [picture(130, 90), picture(60, 200, 1), picture(28, 28, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def clip(folder):
    return embedlm.load(folder, device="cpu")


@torch.no_grad()
def test_clip(folder, clip):
    assert clip.recipe == embedlm.Recipe.load("clip")
    assert clip.dim == 20
    ours = clip.encode([*TEXTS, *IMAGES])
    network = tf.CLIPModel.from_pretrained(folder).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    read = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    read.pop("token_type_ids", None)
    texts = network.get_text_features(**read).pooler_output
    processor = tf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    images = network.get_image_features(**processor(IMAGES, return_tensors="pt")).pooler_output
    theirs = torch.nn.functional.normalize(torch.cat([texts, images]), dim=-1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_vector_does_not_depend_on_its_company(clip):
    items = [TEXTS[0], IMAGES[0], *TEXTS[1:], *IMAGES[1:]]
    alone = np.stack([clip.encode(item) for item in items])
    np.testing.assert_allclose(clip.encode(items), alone, atol=2e-6)


def test_a_saved_model_is_transformers_own(clip, tmp_path):
    clip.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved", device="cpu")
    items = [TEXTS[0], IMAGES[0]]
    np.testing.assert_allclose(again.encode(items), clip.encode(items), atol=1e-6)
    assert type(tf.AutoModel.from_pretrained(tmp_path / "saved")) is tf.CLIPModel


def test_what_no_tower_reads_is_refused(clip):
    with pytest.raises(InputError, match="a text was given beside an image"):
        clip.encode({"image": IMAGES[0], "text": "a dog"})
    with pytest.raises(InputError, match="an instruction or a demonstration was given"):
        clip.encode(IMAGES[:1], instruction="find")


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
def test_sizes_are_refused_where_all_images_are_read_in_one(clip, name):
    model = clip.with_recipe(clip.recipe.override({f"image.{name}": 784}))
    with pytest.raises(UnsupportedError, match=f"image.{name} is for networks that read each"):
        model.encode(IMAGES[0])


def test_a_prompt_of_the_call_s_own_is_for_texts(clip):
    assert clip.encode("a dog", prompt="a photo of ").shape == (20,)
    with pytest.raises(InputError, match="written before texts alone, and an image was given"):
        clip.encode(["a dog", IMAGES[0]], prompt="a photo of ")


@pytest.mark.parametrize("layer", [1, 0.5, [-2, -1]])
def test_no_layer_but_the_last_is_in_the_shared_space(clip, layer):
    with pytest.raises(UnsupportedError, match=r"pooling\.layer is .*; leave it at -1"):
        clip.with_recipe(clip.recipe.override({"pooling.layer": layer}))


def test_other_networks_are_no_towers(tiny_llama):
    with pytest.raises(UnsupportedError, match="the network is 'llama'; allowed: clip, siglip"):
        embedlm.load(tiny_llama, "clip", device="cpu")


# -- SigLIP ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    return build_siglip(tmp_path_factory.mktemp("siglip") / "model")


@torch.no_grad()
@pytest.mark.parametrize("attn", ["auto", "eager"])
def test_siglip(siglip_folder, attn, tmp_path):
    siglip = embedlm.load(siglip_folder, device="cpu", attn=attn)
    assert siglip.recipe == embedlm.Recipe.load("siglip2")
    network = tf.SiglipModel.from_pretrained(siglip_folder).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(siglip_folder)
    read = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    assert (read["input_ids"][1] == tokenizer.pad_token_id).sum() > 10
    texts = network.get_text_features(input_ids=read["input_ids"]).pooler_output
    processor = tf.AutoImageProcessor.from_pretrained(siglip_folder, backend="pil")
    images = network.get_image_features(**processor(IMAGES, return_tensors="pt")).pooler_output
    theirs = torch.nn.functional.normalize(torch.cat([texts, images]), dim=-1)
    items = [*TEXTS, *IMAGES]
    np.testing.assert_allclose(siglip.encode(items), theirs, rtol=1e-4, atol=1e-5)
    alone = np.stack([siglip.encode(item) for item in items])
    np.testing.assert_allclose(alone, theirs, rtol=1e-4, atol=1e-5)
    siglip.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(again.encode(items), theirs, rtol=1e-4, atol=1e-5)
    assert type(tf.AutoModel.from_pretrained(tmp_path / "saved")) is tf.SiglipModel


def test_siglip_needs_the_padding_that_it_was_trained_with(siglip_folder, tmp_path):
    folder = shutil.copytree(siglip_folder, tmp_path / "bare")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="the tokenizer has no pad_token"):
        embedlm.load(folder, device="cpu")


def test_the_first_siglip_cleans_texts(siglip_folder, tmp_path):
    first = embedlm.load(siglip_folder, "siglip", device="cpu")
    second = embedlm.load(siglip_folder, device="cpu")
    given = ["How do  PLANTS\tmake food?!", "{the} quick-brown fox's", "", "Wo? ÄPFEL"]
    # As the published tokenizer's `canonicalize_text` gives them.
    cleaned = ["how do plants make food", "the quickbrown foxs", "", "wo äpfel"]
    np.testing.assert_allclose(first.encode(given), second.encode(cleaned), atol=1e-6)
    folder = shutil.copytree(siglip_folder, tmp_path / "first")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "SiglipTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert recognise(folder).name == "siglip"
