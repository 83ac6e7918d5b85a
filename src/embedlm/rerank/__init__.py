"""Scoring pairs of query and document by reading both together."""

from embedlm.rerank.method import Method, methods
from embedlm.rerank.reranker import Reranker

__all__ = ["Method", "Reranker", "methods"]
