"""OpenAI's interface: embeddings, models, and search in vector stores."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from embedlm.search import Found
from embedlm.serving.answers import as_base64, as_json, as_list
from embedlm.serving.bodies import Body, Count, ImageItem, TokenIds, Where, check_ids, items_of
from embedlm.serving.encoding import Encoding
from embedlm.serving.failures import RequestError
from embedlm.serving.lines import Facts
from embedlm.serving.pictures import any_pictured
from embedlm.serving.service import Service, caller_of, service_of

__all__ = ["ROUTES"]

STARTED = int(time.time())
_TEXTS = ". Send texts: LangChain does with check_embedding_ctx_length=False"
log = logging.getLogger("embedlm.serving")
_LONG = "shorten it, or send it to /v1/encode with truncate"


class EmbeddingsBody(Body):
    """What `/v1/embeddings` takes."""

    input: str | ImageItem | list[str] | list[str | ImageItem] | TokenIds | list[TokenIds]
    model: str | None = None
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(None, description="Changes nothing.")


class RankingOptions(Body):
    """How hits are ranked."""

    ranker: Literal["auto", "none"] | None = None
    score_threshold: float | None = None


class StoreSearchBody(Body):
    """What `/v1/vector_stores/{id}/search` takes; `mode` and what follows are ours."""

    query: str | list[str]
    max_num_results: int = Field(10, ge=1, le=50)
    filters: Where | None = None
    ranking_options: RankingOptions | None = None
    rewrite_query: Literal[False] = False
    mode: str | None = None
    instruction: str | None = None


async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
    """Embed texts, images (as Jina's form has them), or token ids of the model's vocabulary."""
    service = service_of(request)
    served, adapter = service.models.embedder(body.model)
    items, ids = items_of(body.input, served=served)
    if ids:
        rows = (row for row, _ in items if isinstance(row, tuple))
        check_ids(rows, served.model.backbone.vocab_size, _TEXTS)
        _tell_of_ids(service, served.name)
    encoding = Encoding(
        served=served,
        heads='["dense"]',
        dim=body.dimensions,
        adapter=adapter,
        ids=ids,
        pictured=any_pictured(items),
    )
    found = await service.encode(caller_of(request), encoding, items, instead=_LONG)
    written = as_base64 if body.encoding_format == "base64" else as_list
    data = [
        {"object": "embedding", "index": index, "embedding": written(output["dense"])}
        for index, output in enumerate(found.outputs)
    ]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    model = body.model or served.name
    return as_json({"object": "list", "data": data, "model": model, "usage": usage})


def _tell_of_ids(service: Service, model: str) -> None:
    """Log once for a model that ids were sent: those of another vocabulary look like its own."""
    if model not in service.sent_ids:
        service.sent_ids.add(model)
        words = "token ids were sent, which must be of this model's own vocabulary" + _TEXTS
        log.warning(Facts(event="token_ids", model=model, message=words))


async def models(request: Request) -> Response:
    """List the models that are served."""
    data = [_shown_model(name) for name in service_of(request).models.names]
    return as_json({"object": "list", "data": data})


async def one_model(name: str, request: Request) -> Response:
    """Show one of the models."""
    service = service_of(request)
    if name not in service.models.rerankers:
        service.models.embedder(name)
    return as_json(_shown_model(name))


def _shown_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "embedlm"}


async def vector_stores(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[
        Literal["asc", "desc"], Query(description="The order in which they were mounted.")
    ] = "desc",
    after: Annotated[str | None, Query(description="An id; what follows it is listed.")] = None,
    before: Annotated[str | None, Query(description="Likewise what stands before it.")] = None,
) -> Response:
    """List the indexes that are mounted, a page of them."""
    service = service_of(request)
    names = list(service.indexes)
    if order == "desc":
        names.reverse()
    if after is not None:
        names = names[names.index(service.index(after).name) + 1 :]
    page = names[:limit]
    if before is not None:
        end = service.index(before).name
        names = names[: names.index(end)] if end in names else []
        page = names[:limit] if after is not None else names[-limit:]
    data = [_shown_store(service, name) for name in page]
    ends = {"first_id": page[0], "last_id": page[-1]} if page else {}
    more = len(names) > len(page)
    return as_json({"object": "list", "data": data, **ends, "has_more": more})


async def vector_store(store: str, request: Request) -> Response:
    """Show one of the indexes."""
    service = service_of(request)
    return as_json(_shown_store(service, service.index(store).name))


def _shown_store(service: Service, name: str) -> dict[str, Any]:
    passages = len(service.indexes[name].index)
    counts = {"in_progress": 0, "completed": passages, "failed": 0, "cancelled": 0}
    return {
        "id": name,
        "object": "vector_store",
        "created_at": STARTED,
        "name": name,
        "status": "completed",
        "usage_bytes": 0,
        "file_counts": {**counts, "total": passages},
        "metadata": None,
        "last_active_at": None,
    }


async def search_store(store: str, body: StoreSearchBody, request: Request) -> Response:
    """Search a mounted index; of several queries, each document counts by its best score."""
    service = service_of(request)
    queries = [body.query] if isinstance(body.query, str) else body.query
    if not queries:
        raise RequestError("query is an empty list; give a question")
    service.check_count(len(queries))
    options: dict[str, Any] = {"mode": body.mode}
    if body.filters is not None:
        options["where"] = body.filters
    if body.instruction is not None:
        options["instruction"] = body.instruction
    caller = caller_of(request)
    best: dict[Any, Found] = {}
    index = service.index(store)
    found = await index.search_all(service, caller, queries, body.max_num_results, **options)
    for hit in chain.from_iterable(found):
        kept = best.get(hit.id)
        best[hit.id] = hit if kept is None or hit.score > kept.score else kept
    ranking = body.ranking_options
    least = None if ranking is None else ranking.score_threshold
    ordered = sorted(best.values(), key=lambda hit: -hit.score)[: body.max_num_results]
    return as_json(
        {
            "object": "vector_store.search_results.page",
            "search_query": queries,
            "data": [_shown_hit(hit) for hit in ordered if least is None or hit.score >= least],
            "has_more": False,
            "next_page": None,
        }
    )


def _shown_hit(hit: Found) -> dict[str, Any]:
    return {
        "file_id": str(hit.id),
        "filename": hit.file,
        "score": hit.score,
        "attributes": {**hit.shown_image, **_attributes(hit.metadata)},
        "content": [{"type": "text", "text": hit.text}],
    }


def _attributes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that OpenAI's attributes can hold."""
    return {
        key: value for key, value in metadata.items() if isinstance(value, str | int | float | bool)
    }


ROUTES = (
    ("POST", "/v1/embeddings", embeddings),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{name:path}", one_model),
    ("GET", "/v1/vector_stores", vector_stores),
    ("GET", "/v1/vector_stores/{store}", vector_store),
    ("POST", "/v1/vector_stores/{store}/search", search_store),
)
