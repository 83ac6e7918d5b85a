"""Finds the passages of files that answer a query."""

from embedlm.search.exact import MODES, ExactIndex, Hit
from embedlm.search.passages import Passage, read_passages

__all__ = ["MODES", "ExactIndex", "Hit", "Passage", "read_passages"]
