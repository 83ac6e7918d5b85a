"""An Embedder as LlamaIndex's BaseEmbedding."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Any

from embedlm.errors import require
from embedlm.interop.models import embedder_of

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from pydantic import PrivateAttr

    from embedlm.embedder import Embedder
else:
    BaseEmbedding = require("llama_index.core.base.embeddings.base", "llamaindex").BaseEmbedding
    PrivateAttr = require("llama_index.core.bridge.pydantic", "llamaindex").PrivateAttr

__all__ = ["EmbedLMEmbedding"]


class EmbedLMEmbedding(BaseEmbedding):
    """Embeds LlamaIndex's nodes and queries, each by the recipe's template for them."""

    _embedder: Any = PrivateAttr()
    _options: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        model: Any = None,
        *,
        recipe: Any = None,
        encode_options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Take or load a model.

        Args:
            model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
            recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.
            encode_options: those of `encode`, for every call: dim, normalize, max_length, ...
            **fields: those of BaseEmbedding: embed_batch_size, callback_manager, ...
        """
        embedder = embedder_of(model, recipe)
        super().__init__(**{"model_name": embedder.name, **fields})
        self._embedder, self._options = embedder, dict(encode_options or {})

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes into saved indexes."""
        return "EmbedLMEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The Embedder that encodes."""
        return self._embedder  # type: ignore[no-any-return]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors = self.embedder.encode_document(list(texts), heads="dense", **self._options)
        return vectors.tolist()  # type: ignore[no-any-return]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        vector = self.embedder.encode_query(query, heads="dense", **self._options)
        return vector.tolist()  # type: ignore[no-any-return]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await to_thread(self._get_text_embedding, text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await to_thread(self._get_query_embedding, query)
