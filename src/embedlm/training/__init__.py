"""Tuning: a plan's stages turn any language model into an embedding model."""

from embedlm.schema.plan import Plan
from embedlm.training.plan import load_plan
from embedlm.training.stages import train

__all__ = ["Plan", "load_plan", "train"]
