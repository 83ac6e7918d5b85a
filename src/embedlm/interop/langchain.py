"""An Embedder as LangChain's Embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedlm.errors import require
from embedlm.interop.models import (
    dense_options,
    document_vectors,
    embedder_of,
    query_vector,
)

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
else:
    Embeddings = require("langchain_core.embeddings", "langchain").Embeddings

__all__ = ["EmbedLMEmbeddings"]


class EmbedLMEmbeddings(Embeddings):
    """Embeds LangChain's documents and queries, each by the recipe's template for them."""

    def __init__(self, model: Any = None, *, recipe: Any = None, **options: Any) -> None:
        """Take or load a model.

        Args:
            model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
            recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.
            **options: those of `encode`, for every call: dim, normalize, max_length, ...
        """
        self.options = dense_options(options)
        self.embedder = embedder_of(model, recipe)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each document."""
        return document_vectors(self.embedder, texts, self.options)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        return query_vector(self.embedder, text, self.options)
