"""Smaller models: fewer layers, neurons and tokens, fewer bits."""

from embedlm.compress.prune import check_cut as check_cut
from embedlm.compress.prune import check_no_adapters as check_no_adapters
from embedlm.compress.prune import prune as prune

__all__ = ["check_cut", "check_no_adapters", "prune"]
