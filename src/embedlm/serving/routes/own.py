"""Our own interface: all that the library's `encode` and `search` can say."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from embedlm.serving.answers import as_base64, as_json, as_list, shown_terms
from embedlm.serving.bodies import (
    ALLOW,
    Body,
    Count,
    ImageItem,
    ImageUri,
    TokenIds,
    Where,
    items_of,
)
from embedlm.serving.encoding import Encoding, Output
from embedlm.serving.failures import RequestError
from embedlm.serving.pictures import any_pictured, check_sight, pictured
from embedlm.serving.service import caller_of, service_of

__all__ = ["ROUTES"]


class EncodeBody(Body):
    """What `/v1/encode` takes: the arguments of the library's `encode`."""

    texts: str | ImageItem | list[str] | list[str | ImageItem] | list[TokenIds]
    model: str | None = None
    recipe: str | None = Field(None, description="One that fits the model; null: its own.")
    role: str | None = None
    instruction: str | list[str] | None = None
    demonstrations: list[dict[str, str]] | None = None
    heads: list[str | dict[str, dict[str, Any]]] | None = None
    dim: Count | None = None
    precision: Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"] = "float32"
    normalize: bool | None = None
    max_length: Count | None = None
    adapter: str | None = Field("auto", description="null: the base alone.")
    truncate: bool = Field(False, description="Shorten texts that are too long.")
    encoding_format: Literal["float", "base64"] = "float"


class SearchBody(Body):
    """What `/v1/search` takes: the arguments of the library's `Index.search`."""

    query: str | None = None
    image: ImageUri | None = None
    index: str | None = None
    top_k: int = Field(10, ge=1, le=1000)
    mode: str | None = Field(
        None, description="null: hybrid; for an image alone, what the model gives."
    )
    where: Where | None = None
    instruction: str | None = None
    fusion: str | None = Field(None, description="Of a hybrid search; null: min_max.")
    weights: dict[str, float] | None = None
    exact: bool = False


async def encode(body: EncodeBody, request: Request) -> Response:
    """Embed texts, and images, by role, instruction, demonstrations, heads, dim and precision."""
    service = service_of(request)
    served, adapter = service.models.embedder(body.model)
    served = await service.recipes.model(service, caller_of(request), served, body.recipe)
    items, ids = items_of(body.texts, body.instruction, served, body.role)
    encoding = Encoding(
        served=served,
        role=body.role,
        demonstrations=None if body.demonstrations is None else json.dumps(body.demonstrations),
        heads=None if body.heads is None else json.dumps(body.heads),
        dim=body.dim,
        precision=body.precision,
        normalize=body.normalize,
        max_length=body.max_length,
        adapter=body.adapter if body.adapter != "auto" else adapter,
        instructed=body.instruction is not None,
        ids=ids,
        pictured=any_pictured(items),
    )
    found = await service.encode(
        caller_of(request), encoding, items, truncate=body.truncate, instead=ALLOW
    )
    shown = [_shown(output, body.encoding_format) for output in found.outputs]
    answer = {
        "model": body.model or served.name,
        "outputs": {head: [one[head] for one in shown] for head in shown[0]},
        "tokens": found.tokens,
        "truncated": found.truncated,
    }
    return as_json(answer, truncated=found.truncated)


def _shown(output: Output, form: str) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for head, value in output.items():
        if isinstance(value, tuple):
            shown[head] = shown_terms(value)
        elif form == "base64":
            kind, shape = value.dtype.name, list(value.shape)
            shown[head] = {"dtype": kind, "shape": shape, "data": as_base64(value)}
        else:
            shown[head] = as_list(value)
    return shown


async def search(body: SearchBody, request: Request) -> Response:
    """Search a mounted index; the answer is that of `embedlm search --json`."""
    service = service_of(request)
    query: Any = body.query
    found = service.index(body.index)
    if body.image is not None:
        check_sight(found.served, "query")
        query = pictured(body.image, body.query or "", "the query")
    elif query is None:
        raise RequestError("give a query, an image, or both")
    options: dict[str, Any] = {"mode": body.mode, "exact": body.exact}
    for name, value in (
        ("where", body.where),
        ("instruction", body.instruction),
        ("fusion", body.fusion),
        ("weights", body.weights),
    ):
        if value is not None:
            options[name] = value
    hits = await found.search(service, caller_of(request), query, body.top_k, **options)
    return as_json({"hits": [hit.as_dict() for hit in hits]})


ROUTES = (
    ("POST", "/v1/encode", encode),
    ("POST", "/v1/search", search),
)
