"""What the settings of a GGUF file may be; what contradicts itself is refused by name.

llama.cpp refuses a setting of another type too (`src/llama-model-loader.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from embedlm.backbone.gguf_file import GgufFile
from embedlm.errors import ModelError
from embedlm.schema.arguments import short

__all__ = ["NONE", "check_general", "check_settings", "check_vocabulary"]

NONE = (-1, 2**32 - 1)
"""As the place of a special token: there is none (-1, also without a sign)."""
_LARGEST = 2**31 - 1
_LARGEST_FLOAT = 3.4e38


def _is_whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < _LARGEST_FLOAT


_Kind = tuple[str, Callable[[Any], bool]]
_COUNT: _Kind = ("a whole number above 0", lambda value: _is_whole(value, 1))
_WHOLE: _Kind = ("a whole number", _is_whole)
_NUMBER: _Kind = ("a number above 0", _is_number)
_FACTOR: _Kind = ("a number", lambda value: _is_number(value) or value == 0)
_FLAG: _Kind = ("true or false", lambda value: isinstance(value, bool))
_TEXT: _Kind = ("text", lambda value: isinstance(value, str))
_OF_ARCHITECTURE: Mapping[str, _Kind] = {
    **dict.fromkeys(
        (
            *("context_length", "block_count", "embedding_length", "feed_forward_length"),
            *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
            *("attention.value_length", "rope.dimension_count"),
        ),
        _COUNT,
    ),
    **dict.fromkeys(
        ("pooling_type", "attention.sliding_window", "rope.scaling.original_context_length"),
        _WHOLE,
    ),
    **dict.fromkeys(
        (
            *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.freq_base_swa"),
            *("attn_logit_softcapping", "final_logit_softcapping"),
        ),
        _NUMBER,
    ),
    "rope.scaling.factor": _FACTOR,
    "rope.scaling.type": _TEXT,
    "attention.causal": _FLAG,
}
_OF_ALL: Mapping[str, _Kind] = {
    "general.architecture": _TEXT,
    "general.type": _TEXT,
    "split.count": _WHOLE,
    "tokenizer.chat_template": _TEXT,
    "tokenizer.ggml.model": _TEXT,
    "tokenizer.ggml.pre": _TEXT,
    "tokenizer.ggml.add_bos_token": _FLAG,
    "tokenizer.ggml.add_eos_token": _FLAG,
    "tokenizer.ggml.add_space_prefix": _FLAG,
}
_LISTS: Mapping[str, tuple[type, str]] = {
    "tokens": (str, "texts"),
    "token_type": (int, "whole numbers"),
    "scores": (float, "numbers"),
    "merges": (str, "texts"),
}


def check_general(file: GgufFile) -> None:
    """Refuse a file one of whose settings that every kind of file has is not of its type.

    Raises:
        ModelError: names the setting, its value and what is allowed.
    """
    _check(file, _OF_ALL)


def check_settings(file: GgufFile) -> None:
    """Refuse a file one of whose settings of the network or the tokenizer is not of its type.

    Raises:
        ModelError: names the setting, its value and what is allowed.
    """
    _check(file, {f"{file.architecture}.{name}": kind for name, kind in _OF_ARCHITECTURE.items()})
    for name, (kind, told) in _LISTS.items():
        values = file.settings.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise _wrong(file, f"tokenizer.ggml.{name}", short(values), f"a list of {told}")


def _check(file: GgufFile, allowed: Mapping[str, _Kind]) -> None:
    for name, (told, fits) in allowed.items():
        value = file.settings.get(name)
        if value is not None and not fits(value):
            raise _wrong(file, name, short(value), told)


def check_vocabulary(file: GgufFile, rows: int) -> None:
    """Refuse a vocabulary whose lists contradict each other, or name a token that is not there.

    Args:
        file: whose settings are of the right types.
        rows: how many tokens have an embedding.

    Raises:
        ModelError: names the setting.
    """
    settings = {
        name.removeprefix("tokenizer.ggml."): value for name, value in file.settings.items()
    }
    tokens: list[str] = settings.get("tokens", [])
    if not tokens or len(tokens) > rows:
        raise ModelError(
            f"{file.path} has {len(tokens)} tokens and embeddings of {rows}; get the file again"
        )
    for name in ("token_type", "scores"):
        count = len(settings.get(name, tokens))
        if count != len(tokens):
            told = f"a list of {len(tokens)}, as many as there are tokens"
            raise _wrong(file, f"tokenizer.ggml.{name}", f"a list of {count}", told)
    byte_level = settings.get("model") == "gpt2"
    needed = "merges" if byte_level else "scores"
    if needed not in settings and "merges" not in settings:
        raise ModelError(
            f"{file.path} has no tokenizer.ggml.{needed}, without which its vocabulary cannot be "
            "used; get the file again"
        )
    odd = [merge for merge in settings.get("merges", []) if len(merge.split(" ")) != 2]
    if odd and byte_level:
        told = "two parts with a space between them"
        raise _wrong(file, "a line of tokenizer.ggml.merges", short(odd[0]), told)
    _check_special(file, settings, tokens)


def _check_special(file: GgufFile, settings: Mapping[str, Any], tokens: list[str]) -> None:
    """Refuse special tokens that the vocabulary lacks or has twice."""
    for name, value in settings.items():
        if not name.endswith("_token_id") or value in NONE:
            continue
        if not _is_whole(value) or value >= len(tokens):
            told = f"a place among the {len(tokens)} tokens, from 0"
            raise _wrong(file, f"tokenizer.ggml.{name}", short(value), told)
        if tokens.count(tokens[value]) > 1:
            raise ModelError(
                f"{file.path} sets tokenizer.ggml.{name} to {value}, and the vocabulary has "
                f"{short(tokens[value])} more than once; get the file again"
            )


def _wrong(file: GgufFile, name: str, value: str, told: str) -> ModelError:
    return ModelError(
        f"{file.path} sets {name} to {value}; allowed is {told}. The file is damaged or of "
        "another kind; get it again"
    )
