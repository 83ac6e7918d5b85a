"""Controlled comparisons: of runtimes (parity), layers and demonstrations."""

from embedlm.studies.layers import ScoredLayer, search_layers
from embedlm.studies.parity import Comparison, Row, compare
from embedlm.studies.runtimes import Runtime, open_runtime

__all__ = [
    "Comparison",
    "Row",
    "Runtime",
    "ScoredLayer",
    "compare",
    "open_runtime",
    "search_layers",
]
