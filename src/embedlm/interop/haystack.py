"""An Embedder as Haystack's components: one for documents, one for queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedlm.errors import InputError, require
from embedlm.interop.models import (
    dense_options,
    document_vectors,
    embedder_of,
    query_vector,
    written_model,
    written_recipe,
)

if TYPE_CHECKING:
    from haystack import Document, component, default_from_dict, default_to_dict

    from embedlm.embedder import Embedder
else:
    _haystack = require("haystack", "haystack")
    Document, component = _haystack.Document, _haystack.component
    default_from_dict = _haystack.default_from_dict
    default_to_dict = _haystack.default_to_dict

__all__ = ["EmbedLMDocumentEmbedder", "EmbedLMTextEmbedder"]


class _Settings:
    """What both components share: a model that is loaded by `warm_up`, or at the first run.

    `component` makes each class anew, so that `super()` would not find its way here.
    """

    def __init__(self, model: Any, recipe: Any, encode_options: dict[str, Any] | None) -> None:
        self.model = model
        self.recipe = recipe
        self.encode_options = dense_options(encode_options)
        self._embedder: Embedder | None = None

    def warm_up(self) -> None:
        """Load the model."""
        if self._embedder is None:
            self._embedder = embedder_of(self.model, self.recipe)

    @property
    def embedder(self) -> Embedder:
        """The Embedder that encodes."""
        self.warm_up()
        assert self._embedder is not None
        return self._embedder

    def _parameters(self) -> dict[str, Any]:
        """Return what a saved pipeline holds of the component.

        Raises:
            InputError: a model that was given as an object, which YAML cannot hold.
        """
        model = written_model(self.model)
        if not (model is None or isinstance(model, str)):
            raise InputError(
                f"model is a {type(self.model).__name__}, which a saved pipeline cannot hold; give "
                "a name or path"
            )
        return {
            "model": model,
            "recipe": written_recipe(self.recipe),
            "encode_options": self.encode_options,
        }


@component
class EmbedLMTextEmbedder(_Settings):
    """Embeds a query by the recipe's template for queries."""

    def __init__(
        self, model: Any = None, recipe: Any = None, encode_options: dict[str, Any] | None = None
    ) -> None:
        """Take a model.

        Args:
            model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
            recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.
            encode_options: those of `encode`, for every call: dim, normalize, max_length, ...
        """
        _Settings.__init__(self, model, recipe, encode_options)

    @component.output_types(embedding=list[float])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, list[float]]:
        """Return the vector of a query."""
        if not isinstance(text, str):
            raise InputError(
                f"text is {type(text).__name__}; give a string, or documents to an "
                "EmbedLMDocumentEmbedder"
            )
        return {"embedding": query_vector(self.embedder, text, self.encode_options)}

    def to_dict(self) -> dict[str, Any]:
        """Return the component as Haystack saves it."""
        return default_to_dict(self, **self._parameters())  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EmbedLMTextEmbedder:
        """Return a component that Haystack saved."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]


@component
class EmbedLMDocumentEmbedder(_Settings):
    """Embeds documents by the recipe's template for documents."""

    def __init__(
        self,
        model: Any = None,
        recipe: Any = None,
        encode_options: dict[str, Any] | None = None,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
    ) -> None:
        """Take a model.

        Args:
            model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
            recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.
            encode_options: those of `encode`, for every call: dim, normalize, max_length, ...
            meta_fields_to_embed: fields of a document's meta that stand before its content.
            embedding_separator: stands between these fields and the content.
        """
        _Settings.__init__(self, model, recipe, encode_options)
        if isinstance(meta_fields_to_embed, str):
            raise InputError(
                f"meta_fields_to_embed is one string, {meta_fields_to_embed!r}; give a list of "
                "names"
            )
        self.meta_fields_to_embed = list(meta_fields_to_embed)
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Return the documents with their vectors."""
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise InputError("documents are no list of Documents; give a text to a text embedder")
        texts = [self._text(document) for document in documents]
        vectors = document_vectors(self.embedder, texts, self.encode_options)
        pairs = zip(documents, vectors, strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}

    def _text(self, document: Document) -> str:
        fields = [document.meta.get(name) for name in self.meta_fields_to_embed]
        before = [str(value) for value in fields if value is not None]
        return self.embedding_separator.join([*before, document.content or ""])

    def to_dict(self) -> dict[str, Any]:
        """Return the component as Haystack saves it."""
        return default_to_dict(  # type: ignore[no-any-return]
            self,
            **self._parameters(),
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EmbedLMDocumentEmbedder:
        """Return a component that Haystack saved."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]
