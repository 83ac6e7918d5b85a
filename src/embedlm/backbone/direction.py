"""Whether tokens see what follows them: where an architecture may read it from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from embedlm.errors import ModelError

__all__ = ["asks_for_bidirectional", "set_direction"]

_SWITCHES = ("use_bidirectional_attention", "use_bidirectional_attn")
_OTHER_SENSES = ("vision", "audio", "image", "video")
"""Parts of the names of configs within a config that are of no text."""


def set_direction(network: nn.Module, *, causal: bool) -> None:
    """Set the direction on a network's modules and configs; the probe tells what comes of it."""
    for owner in _owners(network):
        owner.is_causal = causal


def _owners(network: nn.Module) -> list[Any]:
    """Return everything that an architecture may read the direction from."""
    owners: list[Any] = []
    for module in _text_modules(network):
        if isinstance(getattr(module, "is_causal", None), bool):
            owners.append(module)
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            owners += [config, config.get_text_config()]
    return list({id(owner): owner for owner in owners}.values())


def _text_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and those within it that texts pass through: no part for images, say."""
    config = getattr(module, "config", None)
    if _of_no_text(str(getattr(config, "base_config_key", ""))):
        return
    yield module
    for child in module.children():
        yield from _text_modules(child)


def _of_no_text(name: str) -> bool:
    return any(sense in name for sense in _OTHER_SENSES)


def asks_for_bidirectional(fields: Mapping[str, Any]) -> bool:
    """Tell whether a config.json asks for attention in both directions, in any of its parts.

    Some classes ignore it (Llama, Mistral, Qwen2, Qwen3).

    Args:
        fields: of the file.

    Raises:
        ModelError: a value that means nothing.
    """
    for name, value in _settings(fields):
        if name in _SWITCHES:
            # "vision": between the tokens of an image only.
            if value not in (None, False, True, "all", "vision"):
                raise ModelError(
                    f"config.json has {name}: {value!r}; allowed: true, false, 'all', 'vision'"
                )
            if value in (True, "all"):
                return True
        elif name == "is_causal" and value is False:
            return True
    return False


def _settings(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a config and of the configs within it that are of text."""
    for name, value in fields.items():
        yield name, value
        if _of_no_text(name):
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from _settings(part)
