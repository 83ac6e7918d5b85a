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


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_dtype(value: Any) -> bool:
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    return value == "auto" or isinstance(getattr(torch, name, None), torch.dtype)


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
    "model_type": ("a string", lambda value: isinstance(value, str)),
    "architectures": ("a list of strings", _is_names),
    **{
        key: ("true or false", lambda value: isinstance(value, bool))
        for key in ("tie_word_embeddings", "is_decoder", "add_cross_attention")
    },
}


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
    for inner in (content.get("text_config"), content.get("rope_parameters")):
        if isinstance(inner, dict):
            check_fields(file, inner)
