"""What the bridges share: the model that they take, how it is written down, and dense vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import embedlm
from embedlm.encode.identity import revision
from embedlm.encode.options import check_options
from embedlm.errors import InputError
from embedlm.schema.arguments import short

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = [
    "dense_options",
    "document_vectors",
    "embedder_of",
    "query_vector",
    "written_model",
    "written_recipe",
]

_EMBEDDER = "embedder"


def embedder_of(model: Any, recipe: Any = None) -> Embedder:
    """Return an embedder, or load one.

    Args:
        model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
        recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.

    Raises:
        InputError: what `written_model` gave for an Embedder.
    """
    if isinstance(model, Mapping) and _EMBEDDER in model:
        raise InputError(
            f"the model was an Embedder, {str(model[_EMBEDDER])!r}, which is not written down; "
            "give it as model, or a name or path"
        )
    embedder: Embedder
    if not isinstance(model, embedlm.Embedder):
        embedder = embedlm.load(model, recipe)
    else:
        embedder = model if recipe is None else model.with_recipe(recipe)
    return embedder


def written_model(model: Any) -> Any:
    """Return a model as JSON or YAML hold it; an Embedder only by what tells it from others."""
    if isinstance(model, embedlm.Embedder):
        return {_EMBEDDER: model.name, "revision": revision(model)}
    return str(model) if isinstance(model, Path) else model


def written_recipe(recipe: Any) -> Any:
    """Return a recipe as JSON or YAML hold it."""
    if isinstance(recipe, embedlm.Recipe):
        return recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        return dict(recipe)
    return str(recipe) if isinstance(recipe, Path) else recipe


def dense_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of `encode` for a bridge that gives dense vectors.

    Raises:
        InputError: a name or a value that `encode` does not take, or heads.
    """
    given = dict(options or {})
    if given.get("heads") is not None:
        raise InputError(
            f"heads is {short(given['heads'])}; the vectors given here are those of the dense "
            "head. Leave heads out, or call encode"
        )
    given.pop("heads", None)
    check_options(given)
    return given


def document_vectors(
    embedder: Embedder, texts: Sequence[str], options: Mapping[str, Any]
) -> list[list[float]]:
    """Return the dense vectors of documents.

    Raises:
        InputError: one string, which would be taken for a list of letters.
    """
    if isinstance(texts, str):
        raise InputError(f"texts is one string, {short(texts)}; give a list of strings")
    vectors = embedder.encode_document(list(texts), heads="dense", **options)
    return vectors.tolist()  # type: ignore[no-any-return]


def query_vector(embedder: Embedder, text: str, options: Mapping[str, Any]) -> list[float]:
    """Return the dense vector of a query.

    Raises:
        InputError: something else than a string.
    """
    if not isinstance(text, str):
        raise InputError(f"the query is a {type(text).__name__}, {short(text)}; give one string")
    vector = embedder.encode_query(text, heads="dense", **options)
    return vector.tolist()  # type: ignore[no-any-return]
