"""The layers of a network by their names, without its weights: what its config alone says."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel

from embedlm.backbone.adapter_files import split_adapters
from embedlm.backbone.config import load_config
from embedlm.backbone.quiet import quiet

__all__ = ["outline"]


def outline(source: str) -> nn.Module | None:
    """Return the network of a folder or hub id without weights; None where none can be made so."""
    try:
        config = load_config(split_adapters(source)[0])
        with quiet(), torch.device("meta"):
            network: nn.Module = AutoModel.from_config(config)
    except Exception:  # a class that wants another config, or its own code: loading tells more
        return None
    return network
