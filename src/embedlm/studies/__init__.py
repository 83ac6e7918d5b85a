"""Controlled comparisons: of runtimes (parity), layers and demonstrations."""

from embedlm.studies.layers import ScoredLayer, search_layers
from embedlm.studies.parity import Comparison, TextComparison, compare
from embedlm.studies.runtimes import Runtime, open_runtime

__all__ = [
    "Comparison",
    "Runtime",
    "ScoredLayer",
    "TextComparison",
    "compare",
    "open_runtime",
    "search_layers",
]
