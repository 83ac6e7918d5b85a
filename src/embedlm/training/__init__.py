"""Tuning: a plan's stages turn any language model into an embedding model."""

from embedlm.training.plan import Plan, load_plan
from embedlm.training.stages import train

__all__ = ["Plan", "load_plan", "train"]
