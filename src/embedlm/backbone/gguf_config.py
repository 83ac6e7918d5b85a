"""From a GGUF file's settings to a transformers config: each is honoured or refused by name.

The settings' names: ggml-org/ggml `docs/gguf.md` and `gguf.Keys`. What llama.cpp computes where the
file is silent was read in its `src/models/*.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedlm.backbone.gguf_checks import check_general, check_settings
from embedlm.backbone.gguf_file import GgufFile
from embedlm.errors import ModelError, UnsupportedError

__all__ = ["ARCHITECTURES", "Architecture", "config_of", "pooling_of"]

POOLINGS = {1: "mean", 2: "cls", 3: "lasttoken"}
"""llama.cpp's pooling_type, in sentence-transformers' names; 0 is none, 4 a re-ranker's."""
_FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_READ_ELSEWHERE = {
    "vocab_size",
    "pooling_type",
    "attention.causal",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "attention.sliding_window",
    "tensor_data_layout",
}
"""Settings that `config_of` reads for every architecture, or that change no value."""


@dataclass(frozen=True)
class Architecture:
    """A kind of network: its config's type, its class, and what is its own."""

    model_type: str
    network: str
    fields: Mapping[str, str] = field(default_factory=dict)
    """Further settings and the config's names of them."""
    permutes: bool = False
    """Queries and keys are stored with their rotary halves interleaved."""
    norm_offset: float = 0.0
    """What the file adds to the weights of every norm."""
    windows: bool = False
    """The architecture has sliding windows."""


_GEMMA = {"attn_logit_softcapping": "attn_logit_softcapping"}
ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", permutes=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM"),
    "gemma": Architecture("gemma", "GemmaForCausalLM", norm_offset=1.0),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        {**_GEMMA, "final_logit_softcapping": "final_logit_softcapping"},
        norm_offset=1.0,
        windows=True,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        norm_offset=1.0,
        windows=True,
    ),
}


def config_of(file: GgufFile) -> dict[str, Any]:
    """Return the content of config.json for a file.

    Raises:
        UnsupportedError: an architecture or a setting that EmbedLM does not read.
        ModelError: settings that are missing or contradict each other.
    """
    check_general(file)
    kind = _architecture(file)
    check_settings(file)
    named = {**_FIELDS, **kind.fields}
    prefix = f"{file.architecture}."
    unread = [
        key
        for key, value in file.settings.items()
        if key.startswith(prefix)
        and key.removeprefix(prefix) not in {*named, *_READ_ELSEWHERE}
        and value not in (0, 0.0, False)
    ]
    if unread:
        raise UnsupportedError(
            f"{file.path} sets {unread[0]} = {file.settings[unread[0]]!r}, which EmbedLM does not "
            f"read for {file.architecture}; take the model as safetensors"
        )
    config: dict[str, Any] = {
        "model_type": kind.model_type,
        "architectures": [kind.network],
        # Quantised weights were half-precision ones.
        "dtype": "float32" if _all_float32(file) else "bfloat16",
        **{name: file.of_architecture(key) for key, name in named.items()},
    }
    config = {key: value for key, value in config.items() if value is not None}
    _check_sizes(file, config)
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    file.check_places()
    config["vocab_size"] = shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    if kind.model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in shapes
        config["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    _set_head_width(file, config)
    _set_windows(file, kind, config)
    _set_rope(file, config)
    if file.of_architecture("attention.causal") is False:
        config |= {"is_causal": False, "use_bidirectional_attention": True}
    for name in ("bos", "eos", "unknown", "padding"):
        identity = file.settings.get(f"tokenizer.ggml.{name}_token_id")
        if identity is not None:
            short = {"unknown": "unk", "padding": "pad"}.get(name, name)
            config[f"{short}_token_id"] = identity
    return config


def pooling_of(file: GgufFile) -> str | None:
    """Return how an embedding model's file is pooled, in sentence-transformers' name, or None."""
    kind = file.of_architecture("pooling_type", 0)
    if kind in (0, None):
        return None
    if kind not in POOLINGS:
        raise UnsupportedError(
            f"{file.path} has the pooling_type {kind}, "
            + ("a re-ranker's" if kind == 4 else "which is not known")
            + f"; EmbedLM reads {', '.join(map(str, POOLINGS))}"
        )
    return POOLINGS[kind]


def _architecture(file: GgufFile) -> Architecture:
    about = str(file.settings.get("general.type", "model"))
    if file.architecture == "clip" or about in ("mmproj", "adapter", "imatrix"):
        what = (
            "a vision projector"
            if about == "mmproj" or file.architecture == "clip"
            else f"an {about}"
        )
        raise UnsupportedError(
            f"{file.path} holds {what}, not a language model; give the model's own file"
        )
    if file.settings.get("split.count", 1) > 1:
        raise UnsupportedError(
            f"{file.path} is one of {file.settings['split.count']} parts; join them first: "
            "llama-gguf-split --merge FIRST_PART WHOLE"
        )
    if file.architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"{file.path} is a {file.architecture or 'nameless'} network; of GGUF files EmbedLM "
            f"reads {', '.join(ARCHITECTURES)}. Take the model as safetensors"
        )
    if "token_embd.weight" not in {tensor.name for tensor in file.tensors}:
        raise ModelError(f"{file.path} holds a vocabulary and no weights; get the model's own file")
    return ARCHITECTURES[file.architecture]


def _check_sizes(file: GgufFile, config: Mapping[str, Any]) -> None:
    """Refuse a file that lacks a size, or whose blocks are not as many as it says."""
    needed = {
        key: name
        for key, name in _FIELDS.items()
        if name not in ("head_dim", "rope_theta", "num_key_value_heads")
    }
    for key, name in needed.items():
        if name not in config:
            raise ModelError(
                f"{file.path} does not set {file.architecture}.{key}, which is needed; the file is "
                "damaged or of another kind"
            )
    names = [tensor.name.split(".") for tensor in file.tensors]
    blocks = {name[1] for name in names if name[0] == "blk" and len(name) > 1}
    if len(blocks) != config["num_hidden_layers"]:
        raise ModelError(
            f"{file.path} sets {file.architecture}.block_count to {config['num_hidden_layers']} "
            f"and holds the tensors of {len(blocks)} blocks; get it again"
        )


def _set_head_width(file: GgufFile, config: dict[str, Any]) -> None:
    """Set the width of a head, and check that the file's other widths agree."""
    heads = config["num_attention_heads"]
    rotary = file.of_architecture("rope.dimension_count")
    width = config.setdefault("head_dim", rotary or config["hidden_size"] // heads)
    for key, value in (
        ("attention.value_length", file.of_architecture("attention.value_length", width)),
        ("rope.dimension_count", width if rotary is None else rotary),
    ):
        if value != width:
            raise UnsupportedError(
                f"{file.path} sets {file.architecture}.{key} to {value}, and heads are {width} "
                "wide; EmbedLM reads files where both are equal. Take the model as safetensors"
            )


def _set_windows(file: GgufFile, kind: Architecture, config: dict[str, Any]) -> None:
    window = file.of_architecture("attention.sliding_window")
    if kind.windows:
        if not window:
            raise UnsupportedError(
                f"{file.path} sets no {file.architecture}.attention.sliding_window above 0, "
                "without which EmbedLM does not read it; take the model as safetensors"
            )
        config["sliding_window"] = window
        # The sizes of 27B scale by the width of the model; all others by that of a head.
        large = {"gemma2": 46, "gemma3": 62}[file.architecture] == config["num_hidden_layers"]
        heads = config["num_attention_heads"]
        scalar = config["hidden_size"] // heads if large else config["head_dim"]
        config["query_pre_attn_scalar"] = scalar
    elif window:
        if file.architecture != "llama":
            raise UnsupportedError(
                f"{file.path} sets {file.architecture}.attention.sliding_window, which EmbedLM "
                "does not read for it; take the model as safetensors"
            )
        config |= {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": window,
        }


def _set_rope(file: GgufFile, config: dict[str, Any]) -> None:
    """Set the scaling of rotary positions."""
    kind = file.of_architecture("rope.scaling.type", "none")
    factor = float(file.of_architecture("rope.scaling.factor", 1.0) or 1.0)
    original = file.of_architecture("rope.scaling.original_context_length")
    freqs = [tensor for tensor in file.tensors if tensor.name == "rope_freqs.weight"]
    if freqs:
        config["rope_scaling"] = _llama3_scaling(file, config)
    elif kind == "linear" and factor != 1.0:
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn" and factor != 1.0:
        config["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original or config["max_position_embeddings"],
        }
    elif kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(
            f"{file.path} scales rotary positions by {kind!r}; EmbedLM reads linear and yarn of "
            "GGUF files. Take the model as safetensors"
        )


def _llama3_scaling(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return Llama 3's scaling whose divisors of the frequencies the file holds as a tensor."""
    (stored,) = (values for name, values in file.values(("rope_freqs.weight",)))
    half = config["head_dim"] // 2
    frequency = config.get("rope_theta", 10000.0) ** (-np.arange(half) / half)
    factor, low, high = float(stored.max()), 1.0, 4.0
    for original in (8192, 4096, 16384, 32768):
        turns = original * frequency / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        divisors = 1 / ((1 - smooth) / factor + smooth)
        if stored.shape == divisors.shape and np.allclose(stored, divisors, rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UnsupportedError(
        f"{file.path} divides the rotary frequencies by values that are not Llama 3's; take the "
        "model as safetensors"
    )


def _all_float32(file: GgufFile) -> bool:
    return all(tensor.type == 0 for tensor in file.tensors)
