"""Tiny random models of transformers' architectures, made from the defaults of their configs."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

VOCAB = 400
LARGEST = 40_000_000
"""Parameters of a model that still counts as tiny."""

_SIZES: tuple[tuple[str, int], ...] = (
    (r"(.*_)?vocab_size(_.*)?|original_vocab_size", VOCAB),
    (r"(padded_|audio_|text_|image_)?vocab(ulary)?_size", VOCAB),
    (
        r"(max_position_embeddings|n_positions|n_ctx|max_sequence_length|max_seq_len|seq_length)",
        256,
    ),
    (r"(max_source_positions|max_target_positions|max_encoder_position_embeddings)", 256),
    (r"original_max_position_embeddings", 64),
    (r"(mtp_num_layers|num_nextn_predict_layers|num_mtp_layers|mtp_.*layers)", 0),
    (r"(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|depth)", 2),
    (r"(num_encoder_layers|num_decoder_layers|num_blocks|.*_num_hidden_layers)", 2),
    (r"(num_attention_heads|n_heads?|num_heads|heads|encoder_attention_heads)", 4),
    (r"(decoder_attention_heads|.*_num_attention_heads|num_query_heads)", 4),
    (r"(num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|.*_num_key_value_heads)", 2),
    (r"(hidden_size|d_model|n_embd|dim|embed_dim|hidden_dim|embedding_size|emb_dim)", 32),
    (r"(.*_hidden_size|hidden_size_.*|.*_embed_dim|projection_dim|word_embed_proj_dim)", 32),
    (r"(lru_width|out_hidden_size|output_dim|dim_model)", 32),
    (
        r"(intermediate_size|ffn_dim|d_ff|n_inner|encoder_ffn_dim|decoder_ffn_dim|ffn_hidden_size)",
        48,
    ),
    (r"(.*_intermediate_size|intermediate_size_.*|dim_ff|mlp_dim|ff_dim|intermediate_dim)", 48),
    (r"(head_dim|d_kv|attention_head_dim|kv_channels|global_head_dim|attention_head_size)", 8),
    (r"(qk_rope_head_dim|qk_nope_head_dim|v_head_dim|qk_head_dim|swa_head_dim|.*_head_dim)", 8),
    (r"rotary_dim", 4),
    (r"(kv_lora_rank|q_lora_rank|o_lora_rank|.*_lora_rank)", 16),
    (r"(index_n_heads|indexer_n_heads|index_num_heads)", 2),
    (r"index_topk", 64),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok|top_k|moe_k|num_experts_per_token|moe_top_k|experts_per_token)", 2),
    (r"(n_group|topk_group|n_groups_routing|n_shared_experts|moe_layer_interval)", 1),
    (r"first_k_dense_replace", 1),
    (r"(mamba_d_state|state_size|ssm_state_size|mamba_state_dim)", 8),
    (r"(mamba_n_heads|mamba_num_heads|n_mamba_heads)", 8),
    (r"(mamba_d_head|mamba_head_dim|mamba_headdim)", 8),
    (r"(mamba_d_ssm)", 64),
    (r"(mamba_n_groups|n_groups|mamba_ngroups)", 1),
    (r"(mamba_dt_rank|time_step_rank)", 4),
    (r"(linear_num_key_heads|linear_num_value_heads)", 4),
    (r"(linear_key_head_dim|linear_value_head_dim)", 8),
    (r"(laurel_rank|hidden_size_per_layer_input)", 8),
    (r"(sliding_window|attention_window|local_attention|window_size|.*chunk_size)", 16),
    (r"image_size", 32),
    (r"patch_size", 8),
    (r"(num_mel_bins|num_channels_audio)", 16),
    (r"(codebook_size|num_embeddings)", 64),
    (r"codebook_dim", 16),
)


_WIDE = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128}
_VARIANTS: tuple[dict[str, int], ...] = (
    {},
    {"num_key_value_heads": 4},
    {**_WIDE, "hidden_size": 128, "head_dim": 64},
    _WIDE,
    {"num_hidden_layers": 4},
    {"num_key_value_heads": 4, "num_hidden_layers": 4},
)
"""Sizes that are tried in turn, in all of a config's parts: some classes fix relations of them."""

_MLA = {
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
}

CHANGES: dict[str, dict[str, Any]] = {
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "xlnet": {"d_head": 8, "d_inner": 48},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
        "num_layers": 2,
    },
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1},
    "esm": {"vocab_size": VOCAB, "mask_token_id": 3, "pad_token_id": 1},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "lilt": {"channel_shrink_ratio": 2},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "deepseek_v3": _MLA,
    "axk1": _MLA,
    "glm4_moe_lite": _MLA,
    "minicpm3": _MLA,
    "longt5": {"num_layers": 2},
}
"""What single architectures need on top."""


def tiny_model(model_type: str, **changes: Any) -> nn.Module:
    """Return a small random network of an architecture, of the first sizes that its code takes.

    Raises:
        ValueError: it is not small.
        Exception: whatever its code raises.
    """
    first: Exception | None = None
    last: nn.Module | None = None
    for sizes in _VARIANTS:
        try:
            network = _built(model_type, sizes, changes)
        except Exception as error:
            first = first or error
            continue
        if runs(network):
            return network
        last = last or network
    if last is not None:
        return last  # the package says why it cannot be run
    assert first is not None
    raise first


def runs(network: nn.Module) -> bool:
    """Tell whether a network gives states of tokens alone."""
    with torch.no_grad():
        try:
            takes = inspect.signature(network.forward).parameters
            options = {"use_cache": False} if "use_cache" in takes else {}
            ids_1L = torch.tensor([[7, 8, 9, 10, 11]])
            return bool(network(input_ids=ids_1L, **options).last_hidden_state.ndim > 2)
        except Exception:  # whatever the architecture's own code raises
            return False


def tiny_config(model_type: str, sizes: dict[str, int], changes: dict[str, Any]) -> Any:
    """Return a small config of an architecture.

    Args:
        model_type: transformers' name.
        sizes: for fields of any part of the config.
        changes: of the config's own fields.
    """
    default = AutoConfig.for_model(model_type)
    fields = _shrunk(default.to_dict(), sizes)
    return type(default).from_dict({**fields, **CHANGES.get(model_type, {}), **changes})


def _built(model_type: str, sizes: dict[str, int], changes: dict[str, Any]) -> nn.Module:
    loader = loader_of(model_type)
    with torch.device("meta"):
        meta = loader.from_config(tiny_config(model_type, sizes, changes))
    size = sum(parameter.numel() for parameter in meta.parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters are not tiny")
    torch.manual_seed(0)
    network: nn.Module = loader.from_config(tiny_config(model_type, sizes, changes))
    return network.float().eval()


def loader_of(model_type: str) -> Any:
    """Return the class that reads texts with an architecture: its encoder, where it is made so."""
    name = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(model_type, "")
    return AutoModelForTextEncoding if name.endswith("EncoderModel") else AutoModel


def _shrunk(fields: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """Return a config's fields with every size that has a known name made small."""
    small = {name: _value(str(name), value, sizes) for name, value in fields.items()}
    depth = fields.get("num_hidden_layers")
    if not isinstance(depth, int):
        return small
    lists = [name for name, x in fields.items() if isinstance(x, (list, tuple)) and len(x) == depth]
    kept = _kept_layers([fields[name] for name in lists], depth, small["num_hidden_layers"])
    small["num_hidden_layers"] = len(kept)
    for name in lists:
        small[name] = [_value(name, fields[name][index], sizes) for index in kept]
    layers = fields.get("per_layer_config")
    if isinstance(layers, dict):
        held = {int(index): _shrunk(value, sizes) for index, value in layers.items()}
        small["per_layer_config"] = {
            new: held[index] for new, index in enumerate(kept) if index in held
        }
    return small


def _kept_layers(lists: list[list[Any]], depth: int, least: int) -> list[int]:
    """Return which layers stay: the first of each kind, and as many more as are wanted."""
    kinds = [str([values[index] for values in lists]) for index in range(depth)]
    kept = [index for index, kind in enumerate(kinds) if kind not in kinds[:index]][:6]
    more = [index for index in range(depth) if index not in kept]
    return sorted([*kept, *more[: max(0, least - len(kept))]])


def _value(name: str, value: Any, sizes: dict[str, int]) -> Any:
    if isinstance(value, dict):
        return _shrunk(value, sizes)
    if name == "mrope_section":
        return [2, 1, 1]
    if name.endswith(("token_id", "token_index")):
        return min(value, VOCAB - 1) if isinstance(value, int) and value >= 0 else value
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name in sizes:
        return sizes[name]
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            return min(value, size)
    return value
