"""Smaller models: fewer layers, fewer tokens, fewer bits."""

from embedlm.compress.prune import check_layers as check_layers
from embedlm.compress.prune import prune as prune

__all__ = ["check_layers", "prune"]
