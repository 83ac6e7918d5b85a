"""Adaptation: documents in, a model that is tuned to them and proven better, or the base, out."""

from embedlm.adaptation.adapt import adapt

__all__ = ["adapt"]
