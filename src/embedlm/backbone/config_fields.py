"""Which values the fields of a model's config.json may have; transformers checks the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from embedlm.errors import ModelError
from embedlm.schema.arguments import short

__all__ = ["check_fields", "check_tokenizer"]

_LARGEST = 2**31 - 1
_MOST_LAYERS = 2000
"""More are damage: to build them would take hours and memory that nobody has."""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST


def _is_layer_count(value: Any) -> bool:
    return _is_count(value) and value <= _MOST_LAYERS


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= -1


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_dtype(value: Any) -> bool:
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    return value == "auto" or isinstance(getattr(torch, name, None), torch.dtype)


def _are_positive(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_positive, value))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_COUNTS = (
    *("hidden_size", "n_embd", "d_model", "num_attention_heads", "n_head", "num_heads"),
    *("num_key_value_heads", "intermediate_size"),
    *("vocab_size", "head_dim", "d_ff", "d_kv", "n_positions"),
)
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{key: (f"a whole number from 1 to {_LARGEST}", _is_count) for key in _COUNTS},
    **{key: (f"a whole number from 1 to {_MOST_LAYERS}", _is_layer_count) for key in _LAYERS},
    **{
        key: ("a number above 0", _is_positive)
        for key in ("layer_norm_eps", "rms_norm_eps", "layer_norm_epsilon", "rope_theta")
    },
    **{key: ("a dtype of torch, such as float32", _is_dtype) for key in ("dtype", "torch_dtype")},
    "max_position_embeddings": ("a whole number, 0 or -1 for none", _is_length),
    "model_type": ("a string", lambda value: isinstance(value, str)),
    "architectures": ("a list of strings", _is_names),
    **{
        key: ("true or false", lambda value: isinstance(value, bool))
        for key in ("tie_word_embeddings", "is_decoder", "add_cross_attention")
    },
}
_ROPES = ("rope_parameters", "rope_scaling")
"""Names of the settings of rotary positions, now and before transformers 5."""
_ROPE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{
        key: ("a number above 0", _is_positive)
        for key in ("rope_theta", "factor", "attention_factor", "beta_fast", "beta_slow")
    },
    **{
        key: ("a number above 0", _is_positive)
        for key in ("low_freq_factor", "high_freq_factor", "partial_rotary_factor")
    },
    "original_max_position_embeddings": (f"a whole number from 1 to {_LARGEST}", _is_count),
    **{
        key: ("a list of numbers above 0", _are_positive) for key in ("short_factor", "long_factor")
    },
}

_PARTLY = {"qk_rope_head_dim", "rotary_dim", "rotary_pct", "kv_channels"}
"""Fields by which a head turns another part of itself."""


def check_tokenizer(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse a tokenizer_config.json one of whose fields has a value that it cannot have.

    Raises:
        ModelError: names the file, the field, the value and what is allowed.
    """
    for key, value in content.items():
        told = ""
        if key == "model_max_length" and value is not None and not _is_positive(value):
            told = "a number above 0"
        named = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and not key.startswith("add_") and value is not None:
            told = "" if isinstance(named, str) else 'a string, or {"content": a string, ...}'
        if told:
            raise ModelError(f"{file}: {key} is {short(value)}; allowed is {told}")


def check_fields(file: Path, content: Mapping[str, Any]) -> None:
    """Refuse a config one of whose fields has a value that it cannot have.

    A missing field and null mean the architecture's own default; a list gives a value a layer.

    Raises:
        ModelError: names the file, the field, the value and what is allowed.
    """
    for key, (told, fits) in _ALLOWED.items():
        value = content.get(key)
        several = isinstance(value, list) and key in (*_COUNTS, *_LAYERS) and value
        if value is not None and not all(map(fits, value if several else [value])):
            raise ModelError(f"{file}: {key} is {short(value)}; allowed is {told}")
    for name in _ROPES:
        _check_rope(file, name, content.get(name), content)
    if isinstance(content.get("text_config"), dict):
        check_fields(file, content["text_config"])


def _check_rope(file: Path, name: str, given: Any, content: Mapping[str, Any]) -> None:
    """Refuse settings of rotary positions that mean nothing; some configs have one a layer type."""
    if given is None:
        return
    if not isinstance(given, dict):
        raise ModelError(f"{file}: {name} is {short(given)}; allowed is a mapping of settings")
    for key, value in given.items():
        if isinstance(value, dict):
            _check_rope(file, f"{name}.{key}", value, content)
            continue
        told, fits = _ROPE.get(key, ("", None))
        if fits is not None and value is not None and not fits(value):
            raise ModelError(f"{file}: {name}.{key} is {short(value)}; allowed is {told}")
    width = _rotated(given, content)
    for key in ("short_factor", "long_factor"):
        if width and isinstance(given.get(key), list) and len(given[key]) != width:
            raise ModelError(
                f"{file}: {name}.{key} has {len(given[key])} numbers; needed is one for each of "
                f"the {width} frequencies of a head"
            )


def _rotated(rope: Mapping[str, Any], content: Mapping[str, Any]) -> int | None:
    """Return how many frequencies a head has, where a config of Llama's kind says it."""
    width, heads = content.get("hidden_size"), content.get("num_attention_heads")
    if _PARTLY & set(content) or not _is_count(width) or not _is_count(heads):
        return None
    shares = (rope.get("partial_rotary_factor"), content.get("partial_rotary_factor"), 1.0)
    share = next(one for one in shares if one is not None)
    size: Any = content.get("head_dim") or int(width or 0) // int(heads or 1)
    return int(size * share) // 2 if _is_count(size) and _is_positive(share) else None
