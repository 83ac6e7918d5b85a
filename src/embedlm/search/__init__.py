"""Finds the passages of files that answer a query."""

from embedlm.search.exact import ExactStore
from embedlm.search.fusion import fuse
from embedlm.search.index import MODES, Hit, SearchIndex
from embedlm.search.passages import Passage, read_passages
from embedlm.search.store import Match, Store

__all__ = [
    "MODES",
    "ExactStore",
    "Hit",
    "Match",
    "Passage",
    "SearchIndex",
    "Store",
    "fuse",
    "read_passages",
]
