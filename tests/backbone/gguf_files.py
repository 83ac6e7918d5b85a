"""Writing a transformers folder as a GGUF file, as llama.cpp's converter does."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as tf

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
NORMS_PLUS_ONE = ("gemma", "gemma2", "gemma3_text")


def write_gguf(folder: Path, path: Path, kind: str = "F32", vocabulary=None, **settings) -> Path:
    """Write a folder's model as GGUF; matrices in the type `kind`, and save them so in the folder.

    The folder's own weights become the expanded ones, so that it is the file's reference. Settings
    of the tokenizer in place of the folder's are `vocabulary`.
    """
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    architecture = {"gemma3_text": "gemma3", "mistral": "llama"}.get(
        config.model_type, config.model_type
    )
    writer = gguf.GGUFWriter(path, architecture)
    _write_settings(writer, config, architecture)
    for name, value in settings.items():
        writer.add_key_value(name, *value)
    vocabulary = vocabulary or byte_level(folder, padding_token_id=0)
    for name, value in vocabulary.items():
        writer.add_key_value(f"tokenizer.ggml.{name}", value, *_type_of(value))
    writer.add_chat_template(CHAT)
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    _write_tensors(writer, model, architecture, getattr(gguf.GGMLQuantizationType, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.save_pretrained(folder)
    return path


def _write_settings(writer, config, architecture: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if "llama3" in str(rope):
        factors = _llama3_factors(rope, width)
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    if getattr(config, "sliding_window", None) and architecture != "qwen2":
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _llama3_factors(rope, width: int):
    lengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(width // 2) * 2 / width)
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (original / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    values = np.where(lengths > original / low, factor, between)
    return np.where(lengths < original / high, 1.0, values)


def _type_of(value) -> tuple:
    """Return the type that a setting of the tokenizer is written in."""
    types = gguf.GGUFValueType
    if isinstance(value, list):
        return types.ARRAY, {str: types.STRING, int: types.INT32, float: types.FLOAT32}[
            type(value[0])
        ]
    return ({bool: types.BOOL, int: types.UINT32, str: types.STRING}[type(value)],)


def byte_level(folder: Path, names=None, types=None, **settings) -> dict:
    """Return the settings of a folder's tokenizer, with other names and types of some tokens."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    special = {token["content"] for token in content["added_tokens"]}
    kinds = [(types or {}).get(token, 3 if token in special else 1) for token in vocabulary]
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [(names or {}).get(token, token) for token in vocabulary],
        "token_type": kinds,
        "merges": [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": True,
        **settings,
    }


def sentencepiece(pieces, size: int = 400, **settings) -> dict:
    """Return the settings of a SentencePiece tokenizer whose pieces have falling scores."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) + len(letters))
    tokens += [*pieces, *letters]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(tokens) - 259)]
    spare = range(len(tokens), size)
    return {
        "model": "llama",
        "tokens": tokens + [f"[PAD{number}]" for number in spare],
        "token_type": types + [5] * len(spare),
        "scores": scores + [-1000.0] * len(spare),
        **settings,
    }


def _write_tensors(writer, model, architecture: str, kind) -> None:
    (key,) = (k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(key, model.config.num_hidden_layers)
    config = model.config
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem, _, ending = name.rpartition(".")
        target = f"{table.get_name(stem)}.{ending}"
        values = weight.numpy().copy()
        offset = config.model_type in NORMS_PLUS_ONE and name.endswith("norm.weight")
        if offset:
            values = values + np.float32(1)
        heads = {
            "q_proj": config.num_attention_heads,
            "k_proj": config.num_key_value_heads,
        }.get(stem.rpartition(".")[2])
        if architecture == "llama" and heads:
            values = _interleaved(values, heads)
        stored = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(values, stored)
        writer.add_tensor(target, data, raw_dtype=stored)
        expanded = gguf.dequantize(data, stored).reshape(values.shape)
        if architecture == "llama" and heads:
            expanded = _apart(expanded, heads)
        weight.copy_(torch.from_numpy(np.array(expanded - np.float32(offset))))


def _interleaved(values, heads: int):
    parts = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return parts.swapaxes(1, 2).reshape(values.shape)


def _apart(values, heads: int):
    parts = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return parts.swapaxes(1, 2).reshape(values.shape)
