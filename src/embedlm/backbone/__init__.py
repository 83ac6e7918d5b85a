"""The network under a recipe: loading it, running it packed, and what its tokens may see."""

from embedlm.backbone.files import raw_config, read_tensors
from embedlm.backbone.loading import load_backbone, with_head
from embedlm.backbone.network import Backbone

__all__ = ["Backbone", "load_backbone", "raw_config", "read_tensors", "with_head"]
