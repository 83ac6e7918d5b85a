"""Scoring pairs of query and document by reading both together."""

from embedlm.rerank.method import Method, methods
from embedlm.rerank.reranker import Reranker, is_reranker

__all__ = ["Method", "Reranker", "is_reranker", "methods"]
