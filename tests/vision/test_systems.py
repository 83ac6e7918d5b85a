"""The published systems that read images, against their own code's steps on transformers."""

import numpy as np
import pytest
import torch
import transformers as tf
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

import embedlm
from tests.vision_models import CONFIGS, control_tokenizer, image_processor, picture

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def patches(kind, images, least, most):
    """Images as qwen_vl_utils resizes them, cut into patches, and how many tokens each takes."""
    processor = image_processor(kind)
    side = processor.patch_size * processor.merge_size
    resized = []
    for image in images:
        height, width = smart_resize(image.height, image.width, side, least, most)
        resized.append(image.convert("RGB").resize((width, height)))
    read = processor(images=resized, do_resize=False, return_tensors="pt")
    return dict(read), [int(grid.prod()) // 4 for grid in read["image_grid_thw"]]


def padded(tokenizer, strings, side):
    rows = [tokenizer(string, add_special_tokens=False)["input_ids"] for string in strings]
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    if side == "left":
        ids, mask = ([f + row for f, row in zip(fill, x, strict=True)] for x in (rows, ones))
    else:
        ids, mask = ([row + f for f, row in zip(fill, x, strict=True)] for x in (rows, ones))
    return torch.tensor(ids), torch.tensor(mask)


def with_images(strings, counts):
    """Strings whose image token stands as often as the image has parts."""
    token, counts = "<|image_pad|>", iter(counts)
    return [one.replace(token, token * next(counts)) if token in one else one for one in strings]


def last_attended(h_BLD, mask_BL):
    """QwenLM/Qwen3-VL-Embedding's pooling."""
    last_B = mask_BL.shape[1] - mask_BL.flip(dims=[1]).argmax(dim=1) - 1
    return h_BLD[torch.arange(len(h_BLD)), last_B]


IMAGES = [picture(130, 90), picture(60, 200, 1), picture(500, 400, 2)]
ITEMS = [
    {"image": IMAGES[0]},
    "a dog runs in the snow",
    {"text": "what is in the image?", "image": IMAGES[1]},
    {"image": IMAGES[2], "text": None},
    {"text": ""},
]


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_qwen3_vl_embedding(vision_folder, kind):
    """QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py."""
    limits = (4 * 32 * 32, 20 * 32 * 32)  # of the published 1800, for time
    recipe = embedlm.Recipe.load("qwen3-vl-embedding").override({"image.max_pixels": limits[1]})
    model = embedlm.load(vision_folder(kind), recipe, device="cpu")
    asked = " Find similar ones "
    ours = model.encode(ITEMS, instruction=asked)

    turn = (
        "<|im_start|>system\nFind similar ones.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    contents = [shown, ITEMS[1], shown + ITEMS[2]["text"], shown, "NULL"]
    read, counts = patches(kind, IMAGES, *limits)
    tokenizer = control_tokenizer()
    strings = with_images([turn.format(one) for one in contents], counts)
    ids, mask = padded(tokenizer, strings, "right")
    network = tf.AutoModel.from_pretrained(vision_folder(kind)).eval()
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    out = network(
        input_ids=ids, attention_mask=mask, mm_token_type_ids=(ids == image_id).int(), **read
    )
    theirs = torch.nn.functional.normalize(last_attended(out.last_hidden_state, mask), dim=-1)
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    assert min((ours * theirs.numpy()).sum(1)) > 1 - 1e-5


@torch.no_grad()
def test_gme(vision_folder):
    """Alibaba-NLP/gme-Qwen2-VL-2B-Instruct, gme_inference.py: no places on a grid."""
    limits = (4 * 28 * 28, 20 * 28 * 28)  # of the published 256 to 1280, for time
    changes = {"image.min_pixels": limits[0], "image.max_pixels": limits[1]}
    recipe = embedlm.Recipe.load("gme").override(changes)
    model = embedlm.load(vision_folder("qwen2_vl"), recipe, device="cpu")
    ours = model.encode(ITEMS)
    turn = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}"
        "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    )
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    contents = [shown, ITEMS[1], shown + ITEMS[2]["text"], shown, ""]
    read, counts = patches("qwen2_vl", IMAGES, *limits)
    tokenizer = control_tokenizer()
    strings = with_images([turn.format(one) for one in contents], counts)
    ids, mask = padded(tokenizer, strings, "right")
    network = tf.AutoModel.from_pretrained(vision_folder("qwen2_vl")).eval()
    x_BLD = network.get_input_embeddings()(ids)
    seen = network.visual(read["pixel_values"], grid_thw=read["image_grid_thw"]).pooler_output
    x_BLD[ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")] = seen
    h_BLD = network.language_model(inputs_embeds=x_BLD, attention_mask=mask).last_hidden_state
    h_BD = h_BLD[torch.arange(len(ids)), mask.sum(dim=1) - 1]
    theirs = torch.nn.functional.normalize(h_BD, dim=-1)
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    assert min((ours * theirs.numpy()).sum(1)) > 1 - 1e-5


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
@torch.no_grad()
def test_vlm2vec(vision_folder, kind):
    """TIGER-AI-Lab/VLM2Vec, src/model: left padding, vectors that are not normalised."""
    limits = (4 * 28 * 28, 20 * 28 * 28)
    recipe = embedlm.Recipe.load("vlm2vec").override({"image.max_pixels": limits[1]})
    model = embedlm.load(vision_folder(kind), recipe, device="cpu")
    ours = model.encode(ITEMS[:4], instruction="Represent the given image.")
    asked = "Represent the given image. "
    contents = [
        "<|image_pad|> " + asked,
        asked + ITEMS[1],
        "<|image_pad|> " + asked + ITEMS[2]["text"],
        "<|image_pad|> " + asked,
    ]
    read, counts = patches(kind, IMAGES, *limits)
    tokenizer = control_tokenizer()
    ids, mask = padded(tokenizer, with_images(contents, counts), "left")
    network = tf.AutoModel.from_pretrained(vision_folder(kind)).eval()
    # What get_rope_index of transformers 4 gives where no <|vision_start|> says where images are.
    positions = (mask.cumsum(-1) - 1).clamp_min(0).expand(3, -1, -1)
    out = network(input_ids=ids, attention_mask=mask, position_ids=positions, **read)
    theirs = out.last_hidden_state[:, -1]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert min(torch.cosine_similarity(torch.from_numpy(ours), theirs)) > 1 - 1e-5


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_items_vector_does_not_depend_on_its_company(vision_folder, kind):
    model = embedlm.load(vision_folder(kind), "qwen3-vl-embedding", device="cpu")
    sizes = [(130, 90), (60, 200), (90, 130), (64, 64), (400, 100)]
    images = [picture(*size, seed=number) for number, size in enumerate(sizes)]
    items = [{"image": image, "text": "x " * number} for number, image in enumerate(images)]
    items += ["plants make food", "light " * 40]
    together = model.encode(items)
    alone = np.stack([model.encode(item) for item in items])
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-6)
    np.testing.assert_allclose(model.encode(items, batch_tokens=20), alone, rtol=0, atol=2e-6)


def test_texts_keep_the_packed_path_beside_images(vision_folder):
    model = embedlm.load(vision_folder("qwen3_vl"), "qwen3-vl-embedding", device="cpu")
    assert model.backbone.packs
    texts = ["plants make food", "light", "plants make food from light"]
    alone = model.encode(texts)
    mixed = model.encode([texts[0], {"image": picture(90, 60)}, *texts[1:]])
    np.testing.assert_array_equal(np.delete(mixed, 1, axis=0), alone)


def test_the_grid_matters_and_a_recipe_may_leave_it_out(vision_folder):
    recipe = embedlm.Recipe.load("qwen3-vl-embedding")
    item = {"image": picture(130, 90)}
    grid = embedlm.load(vision_folder("qwen3_vl"), recipe, device="cpu")
    line = grid.with_recipe(recipe.override({"image.positions": "sequence"}))
    assert grid.encode(item) @ line.encode(item) < 0.999
    np.testing.assert_allclose(grid.encode("a dog"), line.encode("a dog"), atol=1e-6)
