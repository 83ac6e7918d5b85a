"""Whether tokens see what follows them: where an architecture may read it from."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PretrainedConfig

__all__ = ["set_direction"]


def set_direction(network: nn.Module, *, causal: bool) -> None:
    """Set the direction on a network's modules and configs; the probe tells what comes of it."""
    for owner in _owners(network):
        owner.is_causal = causal


def _owners(network: nn.Module) -> list[Any]:
    """Return everything that an architecture may read the direction from."""
    owners: list[Any] = []
    for module in network.modules():
        if isinstance(getattr(module, "is_causal", None), bool):
            owners.append(module)
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            owners += [config, config.get_text_config()]
    return list({id(owner): owner for owner in owners}.values())
