"""Controlled comparisons: of runtimes (parity), layers and demonstrations."""

from embedlm.studies.layer_scores import LayerScore, Reading, readings_of, score_layers
from embedlm.studies.layers import ScoredLayer, search_layers
from embedlm.studies.parity import Comparison, TextComparison, compare
from embedlm.studies.runtimes import Runtime, open_runtime

__all__ = [
    "Comparison",
    "LayerScore",
    "Reading",
    "Runtime",
    "ScoredLayer",
    "TextComparison",
    "compare",
    "open_runtime",
    "readings_of",
    "score_layers",
    "search_layers",
]
