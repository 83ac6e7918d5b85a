"""Finds the passages of files that answer a query."""

from embedlm.search.asked import Found, query_of
from embedlm.search.build import IndexReport, build_index, delete_documents
from embedlm.search.chunks import Chunking
from embedlm.search.documents import Document, read_documents
from embedlm.search.edge import EdgeStore
from embedlm.search.exact import ExactStore
from embedlm.search.filters import check_filter, parse_filter
from embedlm.search.fitting import reads_whole
from embedlm.search.fusion import fuse
from embedlm.search.index import MODES, Hit, SearchIndex
from embedlm.search.layout import is_index
from embedlm.search.passages import Passage, read_passages
from embedlm.search.push import push_index
from embedlm.search.saved import Index
from embedlm.search.server import QdrantStore
from embedlm.search.snippets import snippet
from embedlm.search.store import FirstStage, Match, Store

__all__ = [
    "MODES",
    "Chunking",
    "Document",
    "EdgeStore",
    "ExactStore",
    "FirstStage",
    "Found",
    "Hit",
    "Index",
    "IndexReport",
    "Match",
    "Passage",
    "QdrantStore",
    "SearchIndex",
    "Store",
    "build_index",
    "check_filter",
    "delete_documents",
    "fuse",
    "is_index",
    "parse_filter",
    "push_index",
    "query_of",
    "read_documents",
    "read_passages",
    "reads_whole",
    "snippet",
]
