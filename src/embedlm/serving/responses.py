"""Which answer and which errors each route has in OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedlm.serving import schemas

__all__ = ["responses_of"]

_ANSWERS: Mapping[str, Any] = {
    "/v1/embeddings": schemas.Embeddings,
    "/v1/models": schemas.ModelList,
    "/v1/models/{name:path}": schemas.OneModel,
    "/v1/vector_stores": schemas.StoreList,
    "/v1/vector_stores/{store}": schemas.OneStore,
    "/v1/vector_stores/{store}/search": schemas.StorePage,
    "/embed": list[schemas.Vector],
    "/embed_all": list[list[schemas.Vector]],
    "/embed_sparse": list[list[schemas.Term]],
    "/similarity": schemas.Vector,
    "/tokenize": list[list[schemas.Token]],
    "/decode": list[str],
    "/info": schemas.Info,
    "/v2/embed": schemas.CohereEmbeddings,
    "/v2/rerank": schemas.CohereRanks,
    "/v1/rerank": schemas.JinaRanks,
    "/rerank": list[schemas.Rank] | schemas.CohereRanks,
    "/v1/encode": schemas.Encoded,
    "/v1/search": schemas.Hits,
    "/v1/compare": schemas.Compared,
    "/v1/render": schemas.RenderedTexts,
    "/v1/served": schemas.ServedList,
    "/health": schemas.Health,
    "/ping": schemas.Health,
}


_FILES = {
    "/": ("text/html",),
    "/page/{name}": ("text/html", "text/css", "text/javascript"),
    "/docs": ("text/html",),
    "/metrics": ("text/plain",),
}


def responses_of(path: str, method: str = "GET") -> dict[int | str, dict[str, Any]]:
    """Return what a route may answer: its own form, and the errors of its interface."""
    if path == "/v1/rerank":
        error: Any = schemas.JinaError
    elif path.startswith("/v2/"):
        error = schemas.CohereError
    else:
        error = schemas.OpenAIError if path.startswith("/v1/") else schemas.TeiError
    found: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": error, "description": "What is wrong with the request."},
        "5XX": {"model": error, "description": "A fault, or no time left."},
    }
    if path in _ANSWERS:
        found[200] = {"model": _ANSWERS[path], "description": "The answer."}
    if (method, path) == ("POST", "/"):
        kinds = list[schemas.Vector] | list[schemas.Rank]
        found[200] = {"model": kinds, "description": "The answer."}
    elif path in _FILES:
        content: dict[str, Any] = {kind: {} for kind in _FILES[path]}
        found[200] = {"content": content, "description": "A file."}
    if path == "/health":
        found["5XX"] = {"model": schemas.Health, "description": "The server was told to end."}
    return found
