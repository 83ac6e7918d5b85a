"""Tiny random vision-language models, saved like published ones, and images for them."""

import numpy as np
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file

from embedlm.prompt.special import surround_with
from tests.models import build_tokenizer

CONTROL = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
EYES = {"depth": 3, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
WIDE = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "initializer_range": 0.3}
WINDOWS = {"window_size": 56, "fullatt_block_indexes": [2]}
VISION = {
    "qwen2_vl": {**EYES, "embed_dim": 16, "hidden_size": 32, "patch_size": 14, "mlp_ratio": 2},
    "qwen2_5_vl": {**EYES, **WIDE, **WINDOWS, "patch_size": 14},
    "qwen3_vl": {
        **(EYES | WIDE),
        "patch_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    },
}
CONFIGS = {
    "qwen2_vl": tf.Qwen2VLConfig,
    "qwen2_5_vl": tf.Qwen2_5_VLConfig,
    "qwen3_vl": tf.Qwen3VLConfig,
}


def control_tokenizer():
    """Return the tests' tokenizer with the control tokens of Qwen's, and nothing around a text."""
    tokenizer = build_tokenizer("decoder", max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


def config_of(kind, tokenizer):
    """Return the config of a network that has a vision part."""
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(
            ("vision_start", "vision_end", "image", "video"), CONTROL[3:], strict=True
        )
    }
    rope = {**ROPE, "mrope_interleaved": True} if kind == "qwen3_vl" else ROPE
    text = {**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope, "head_dim": 8}
    return CONFIGS[kind](text_config=text, vision_config=VISION[kind], **ids)


def image_processor(kind, least=4, most=12):
    """Return the image processor of a kind, for images of so many tokens."""
    side = 2 * VISION[kind]["patch_size"]
    return tf.Qwen2VLImageProcessorPil(
        patch_size=side // 2,
        merge_size=2,
        size={"shortest_edge": least * side**2, "longest_edge": most * side**2},
    )


def build(kind, folder):
    """Save a tiny random model of that type, with its tokenizer and image processor."""
    torch.manual_seed(sum(map(ord, kind)))
    tokenizer = control_tokenizer()
    network = tf.AutoModel.from_config(config_of(kind, tokenizer))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor(kind).save_pretrained(folder)
    return folder


def build_colqwen2(folder, *, named_as=str):
    """Save a tiny ColQwen2 and return its folder; `named_as` gives each weight its stored name."""
    torch.manual_seed(7)
    tokenizer = control_tokenizer()
    tokenizer.pad_token = "<|endoftext|>"
    inside = config_of("qwen2_vl", tokenizer).to_dict()
    network = tf.ColQwen2ForRetrieval(tf.ColQwen2Config(vlm_config=inside, embedding_dim=12))
    network.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {named_as(name): weight for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    tf.ColQwen2Processor(image_processor("qwen2_vl"), tokenizer).save_pretrained(folder)
    image_processor("qwen2_vl").save_pretrained(folder)
    return folder


def build_colpali(folder):
    """Save a tiny ColPali, whose images have 9 tokens, and return its folder."""
    torch.manual_seed(8)
    tokenizer = build_tokenizer("decoder", max_length=4096)
    tokenizer.backend_tokenizer.post_processor = None
    processor = tf.SiglipImageProcessorPil(size={"height": 42, "width": 42})
    processor.image_seq_length = 9
    whole = tf.ColPaliProcessor(processor, tokenizer)  # adds its tokens to the tokenizer
    text = {**TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "model_type": "gemma"}
    eyes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "projection_dim": 32,
    }
    eyes |= {"num_attention_heads": 2, "image_size": 42, "patch_size": 14}
    inside = tf.PaliGemmaConfig(
        text_config=text,
        vision_config={**eyes, "model_type": "siglip_vision_model"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    config = tf.ColPaliConfig(vlm_config=inside.to_dict(), embedding_dim=12)
    tf.ColPaliForRetrieval(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    head = {"vlm.language_model.lm_head.weight": torch.zeros(len(tokenizer), 32)}  # read by nothing
    save_file({**load_file(file), **head}, file, {"format": "pt"})
    whole.save_pretrained(folder)
    return folder


def build_clip(folder):
    """Save a tiny CLIP and return its folder."""
    torch.manual_seed(9)
    tokenizer = build_tokenizer("encoder", max_length=77)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})  # the highest id, as there
    surround_with(tokenizer, [1], [tokenizer.eos_token_id])
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    tower |= {"num_attention_heads": 4, "initializer_range": 0.3}
    reading = {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "eos_token_id": 2}
    reading |= {"bos_token_id": 1, "pad_token_id": 0}
    seeing = {"image_size": 28, "patch_size": 14, "num_hidden_layers": 2}
    config = tf.CLIPConfig(
        text_config={**tower, **reading}, vision_config={**tower, **seeing}, projection_dim=20
    )
    tf.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": 28, "width": 28}
    tf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side).save_pretrained(folder)
    return folder


def build_siglip(folder):
    """Save a tiny SigLIP, whose config names another padding than its tokenizer's."""
    torch.manual_seed(9)
    tokenizer = build_tokenizer("encoder", max_length=16)
    surround_with(tokenizer, [], [tokenizer.eos_token_id])
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    tower |= {"num_attention_heads": 4}
    reading = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    reading |= {"pad_token_id": 5, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    seeing = {"image_size": 28, "patch_size": 14, "num_hidden_layers": 2}
    config = tf.SiglipConfig(text_config={**tower, **reading}, vision_config={**tower, **seeing})
    network = tf.SiglipModel(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tf.SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def picture(width, height, seed=0):
    """Return an image of smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
