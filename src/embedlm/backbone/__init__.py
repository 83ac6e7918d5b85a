"""The network under a recipe: loading it, running it packed, and what its tokens may see."""

from embedlm.backbone.loading import Backbone, load_backbone

__all__ = ["Backbone", "load_backbone"]
