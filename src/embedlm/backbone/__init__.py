"""The network under a recipe: loading it, running it packed, and what its tokens may see."""

from embedlm.backbone.config import raw_config
from embedlm.backbone.loading import load_backbone
from embedlm.backbone.network import Backbone
from embedlm.backbone.tensors import read_tensors

__all__ = ["Backbone", "load_backbone", "raw_config", "read_tensors"]
