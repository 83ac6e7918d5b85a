"""Comparing two models, or two runtimes of one, text by text."""

from embedlm.comparison.compare import Comparison, Row, compare
from embedlm.comparison.runtimes import Runtime, open_runtime

__all__ = ["Comparison", "Row", "Runtime", "compare", "open_runtime"]
