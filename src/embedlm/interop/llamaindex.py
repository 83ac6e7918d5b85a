"""An Embedder as LlamaIndex's BaseEmbedding."""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Any

from embedlm.errors import require
from embedlm.interop.models import (
    dense_options,
    document_vectors,
    embedder_of,
    query_vector,
    written_model,
    written_recipe,
)

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from pydantic import Field, PrivateAttr, field_serializer

    from embedlm.embedder import Embedder
else:
    BaseEmbedding = require("llama_index.core.base.embeddings.base", "llamaindex").BaseEmbedding
    _pydantic = require("llama_index.core.bridge.pydantic", "llamaindex")
    Field, PrivateAttr = _pydantic.Field, _pydantic.PrivateAttr
    field_serializer = _pydantic.field_serializer

__all__ = ["EmbedLMEmbedding"]


class EmbedLMEmbedding(BaseEmbedding):
    """Embeds LlamaIndex's nodes and queries, each by the recipe's template for them.

    Its fields tell its vectors from those of others, in the keys of LlamaIndex's caches too.
    """

    model: Any = Field(None, description="An Embedder, or what embedlm.load takes.")
    recipe: Any = Field(None, description="As in embedlm.load.")
    encode_options: dict[str, Any] = Field(default_factory=dict, description="Those of encode.")
    _embedder: Any = PrivateAttr()

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
        options = dense_options(encode_options)
        embedder = embedder_of(model, recipe)
        given = {"model": model, "recipe": recipe, "encode_options": options}
        super().__init__(**{"model_name": embedder.name, **fields, **given})
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes into saved indexes."""
        return "EmbedLMEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The Embedder that encodes."""
        return self._embedder  # type: ignore[no-any-return]

    @field_serializer("model")
    def _written_model(self, model: Any) -> Any:
        return written_model(model)

    @field_serializer("recipe")
    def _written_recipe(self, recipe: Any) -> Any:
        return written_recipe(recipe)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: the Embedder too, or it is refused.

        LlamaIndex would leave out what cannot be pickled, and load another model in its place.
        """
        light = self.model_copy(update={"model": None})
        light._embedder = None
        state: dict[str, Any] = super(EmbedLMEmbedding, light).__getstate__()
        return state | {"given": self.model, "embedder": self._embedder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fields = dict(state["__dict__"])
        recipe = fields.pop("recipe", None)
        self.__init__(**{**fields, "model": state["embedder"]})  # type: ignore[misc]
        self.model, self.recipe = state["given"], recipe

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return document_vectors(self.embedder, texts, self.encode_options)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return query_vector(self.embedder, query, self.encode_options)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await to_thread(self._get_text_embedding, text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await to_thread(self._get_query_embedding, query)
