"""Cohere's and Jina's interfaces: embed and rerank."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from embedlm.encode.items import Pictured
from embedlm.prompt.special import core_of
from embedlm.serving.answers import as_base64, as_json, as_list
from embedlm.serving.bodies import Body, Count, ImageItem, ImageUri, items_of
from embedlm.serving.encoding import Encoding, Item, Ranking
from embedlm.serving.failures import RequestError
from embedlm.serving.pictures import any_pictured
from embedlm.serving.routes.tei import TeiRerankBody, rerank_as_tei
from embedlm.serving.service import Encoded, Shortened, caller_of, service_of

__all__ = ["ROUTES"]

_ROLES = {"search_query": "query", "search_document": "document"}
_PRECISIONS = {
    "float": "float32",
    "base64": "float32",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "binary",
    "ubinary": "ubinary",
}


class TextContent(Body):
    """A text of an input."""

    type: Literal["text"]
    text: str


class ImageAddress(Body):
    """Where an image stands: in the address itself."""

    url: ImageUri


class ImageContent(Body):
    """An image of an input."""

    type: Literal["image_url"]
    image_url: ImageAddress


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]


class CohereInput(Body):
    """An input of `/v2/embed`: a text, an image, or one of each."""

    content: Annotated[list[Content], Field(min_length=1, max_length=2)]

    def item(self, index: int) -> ImageItem:
        """Return it as one item.

        Raises:
            RequestError: two texts, or two images.
        """
        found: dict[str, Any] = {}
        for part in self.content:
            kind, value = "text", getattr(part, "text", None)
            if isinstance(part, ImageContent):
                kind, value = "image", part.image_url.url
            if kind in found:
                raise RequestError(f"input {index} has two {kind}s; give one text and one image")
            found[kind] = value
        return ImageItem(**found)


class CohereEmbedBody(Body):
    """What `/v2/embed` takes."""

    model: str | None = None
    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"]
    texts: list[str] | None = None
    images: list[ImageUri] | None = None
    inputs: list[CohereInput] | None = None
    max_tokens: Count | None = None
    output_dimension: Count | None = None
    embedding_types: (
        list[Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]] | None
    ) = None
    truncate: Literal["NONE", "END", "START"] = "END"
    priority: int | None = Field(None, description="Changes nothing: all wait in turn.")


class DocumentText(Body):
    """A document of Jina's form."""

    text: str


class RerankBody(Body):
    """What `/v2/rerank` (Cohere) and `/v1/rerank` (Jina) take."""

    model: str | None = None
    query: str
    documents: list[str | DocumentText]
    top_n: Count | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Count | None = None
    truncation: Literal[True] | None = Field(None, description="Documents are shortened.")
    priority: int | None = Field(None, description="Changes nothing: all wait in turn.")


async def embed(body: CohereEmbedBody, request: Request) -> Response:
    """Embed texts and images; `input_type` is the role."""
    given: list[Any] = [one for one in (body.texts, body.images, body.inputs) if one is not None]
    if len(given) != 1:
        raise RequestError("give texts, images or inputs, one of them")
    parts = given[0]
    if body.images is not None:
        parts = [ImageItem(image=one) for one in body.images]
    elif body.inputs is not None:
        parts = [one.item(index) for index, one in enumerate(body.inputs)]
    served, _ = service_of(request).models.embedder(body.model)
    items, _ = items_of(parts, served=served, role=_role(body, served.model))
    texts = [one if isinstance(one, str) else getattr(one, "text", "") for one, _ in items]
    kinds = list(dict.fromkeys(body.embedding_types or ["float"]))
    embeddings: dict[str, Any] = {}
    found: dict[str, Encoded] = {}
    for kind in kinds:
        precision = _PRECISIONS[kind]
        if precision not in found:
            found[precision] = await _encoded(request, body, items, precision)
        written = as_base64 if kind == "base64" else as_list
        embeddings[kind] = [written(output["dense"]) for output in found[precision].outputs]
    first = next(iter(found.values()))
    meta: dict[str, Any] = {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": first.tokens},
    }
    if pictures := sum(isinstance(one, Pictured) for one, _ in items):
        meta["billed_units"]["images"] = pictures
    if first.truncated:
        shown = ", ".join(map(str, first.truncated))
        meta["warnings"] = [f"texts that were shortened to what the model reads: {shown}"]
    said = [] if body.images is not None else texts
    answer = {"id": str(uuid4()), "embeddings": embeddings, "texts": said, "meta": meta}
    return as_json(answer, truncated=first.truncated)


def _role(body: CohereEmbedBody, model: Any) -> str | None:
    """Return the model's role of what is embedded; None: it has none of that name."""
    named = _ROLES.get(body.input_type, body.input_type)
    return named if named in model.renderer.roles() else None


async def _encoded(
    request: Request, body: CohereEmbedBody, items: list[Item], precision: str
) -> Encoded:
    service = service_of(request)
    served, adapter = service.models.embedder(body.model)
    model = served.model
    if body.truncate == "START" and model.recipe.prompt.truncation_side != "left":
        raise RequestError("this model shortens texts at the end; give truncate END or NONE")
    if body.truncate == "END" and model.recipe.prompt.truncation_side != "right":
        raise RequestError("this model shortens texts at the start; give truncate START or NONE")
    role = _role(body, model)
    encoding = Encoding(
        served=served,
        role=role,
        heads='["dense"]',
        dim=body.output_dimension,
        precision=precision,
        max_length=_limit(body.max_tokens, model.route(role).renderer.max_length(role)),
        adapter=adapter,
        pictured=any_pictured(items),
    )
    end = "END" if model.recipe.prompt.truncation_side == "right" else "START"
    return await service.encode(
        caller_of(request),
        encoding,
        items,
        truncate=body.truncate != "NONE",
        instead=f"shorten it, or send truncate: {end}",
    )


def _limit(asked: int | None, own: int | None) -> int | None:
    if asked is None:
        return None
    return asked if own is None else min(asked, own)


async def rerank(body: RerankBody, request: Request) -> Response:
    """Order documents by how well they answer a query; scores are between 0 and 1."""
    service = service_of(request)
    served = service.models.reranker(body.model)
    sent = [one if isinstance(one, str) else one.text for one in body.documents]
    read: list[str] = sent
    cut: list[int] = []
    if body.max_tokens_per_doc is not None:
        read, cut = _cut(served.model.counting_tokenizer, sent, body.max_tokens_per_doc)
    ranking = Ranking(served=served, probability=True)
    caller = caller_of(request)
    scores, found = await service.rank(caller, ranking, body.query, read)
    shortened = Shortened(found.query, sorted({*cut, *found.documents}))
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
    results = [
        {
            "index": index,
            "relevance_score": scores[index],
            **({"document": {"text": sent[index]}} if body.return_documents else {}),
        }
        for index in order
    ]
    answer: dict[str, Any] = {"id": str(uuid4()), "results": results}
    if request.url.path.startswith("/v1/"):
        answer |= {"model": served.name, "usage": {"total_tokens": caller.spent.tokens}}
    else:
        units = {"search_units": math.ceil(len(sent) / 100)}
        answer["meta"] = {"api_version": {"version": "2"}, "billed_units": units}
        if warnings := _warnings(shortened):
            answer["meta"]["warnings"] = warnings
    return as_json(answer, truncated=shortened.names)


def _warnings(shortened: Shortened) -> list[str]:
    """Return what Cohere's answer says of texts that were shortened."""
    warnings = []
    if shortened.query:
        warnings.append("the query was shortened to what the model reads")
    if shortened.documents:
        shown = ", ".join(map(str, shortened.documents))
        warnings.append(f"documents that were shortened: {shown}")
    return warnings


def _cut(tokenizer: Any, texts: list[str], most: int) -> tuple[list[str], list[int]]:
    """Return texts within so many tokens, and which of them were longer."""
    encodings = core_of(tokenizer).encode_batch(texts, add_special_tokens=False)
    cut = [index for index, encoding in enumerate(encodings) if len(encoding.ids) > most]
    shorter = list(texts)
    for index in cut:
        shorter[index] = texts[index][: encodings[index].offsets[most - 1][1]]
    return shorter, cut


async def rerank_either(body: TeiRerankBody | RerankBody, request: Request) -> Response:
    """Re-rank in TEI's form (`texts`) or in Cohere's (`documents`)."""
    if isinstance(body, TeiRerankBody):
        return await rerank_as_tei(body, request)
    return await rerank(body, request)


ROUTES = (
    ("POST", "/v2/embed", embed),
    ("POST", "/v2/rerank", rerank),
    ("POST", "/v1/rerank", rerank),
    ("POST", "/rerank", rerank_either),
)
