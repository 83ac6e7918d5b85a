"""Adaptation: documents in, a model that is tuned to them and proven better, or the base, out."""

from embedlm.adaptation.run import adapt

__all__ = ["adapt"]
