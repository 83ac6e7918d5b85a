"""QLoRA: the linear layers are held in 4 bits while an adapter is trained on them.

Dettmers et al., arXiv:2305.14314: 4-bit NormalFloat whose block scales are quantised too. The
adapter is merged into the full weights afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from embedlm.errors import require

__all__ = ["in_four_bits"]


def in_four_bits(network: nn.Module, device: torch.device) -> None:
    """Replace the network's linear layers by 4-bit ones, in place.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    bitsandbytes: Any = require("bitsandbytes", "qlora")
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(module, name, _quantised(bitsandbytes, layer, device))
    network.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft requests


def _quantised(bitsandbytes: Any, layer: nn.Linear, device: torch.device) -> Any:
    weight = layer.weight
    new = bitsandbytes.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=weight.dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    new.weight = bitsandbytes.nn.Params4bit(
        weight.detach().cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    new.bias = layer.bias
    return new.to(device)
