"""The network under a recipe: loading it, running it packed, and what its tokens may see."""

from embedlm.backbone.config import raw_config
from embedlm.backbone.gguf_model import gguf_folder
from embedlm.backbone.loading import load_backbone
from embedlm.backbone.network import Backbone
from embedlm.backbone.tensors import read_tensors

__all__ = ["Backbone", "gguf_folder", "load_backbone", "raw_config", "read_tensors"]
