"""The interface of text-embeddings-inference (TEI 1.9)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag
from starlette.requests import Request
from starlette.responses import Response

import embedlm
from embedlm.encode.inputs import check_texts
from embedlm.prompt.special import core_of
from embedlm.serving.answers import as_json, as_list, shown_terms
from embedlm.serving.bodies import ALLOW, Body, Count, TokenIds, check_ids, items_of
from embedlm.serving.encoding import Encoding, Ranking, Served
from embedlm.serving.failures import RequestError, TooLongError
from embedlm.serving.models import short_name
from embedlm.serving.service import Encoded, Service, caller_of, service_of

__all__ = ["ROUTES", "TeiRerankBody", "rerank_as_tei"]


class Truncating(Body):
    """How texts that are too long are met: refused, unless `truncate` says otherwise."""

    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None


class EmbedBody(Truncating):
    """What `/embed` takes."""

    inputs: str | list[str] | list[TokenIds]
    normalize: bool = True
    dimensions: Count | None = None
    prompt_name: str | None = None


class EmbedAllBody(Truncating):
    """What `/embed_all` and `/embed_sparse` take."""

    inputs: str | list[str] | list[TokenIds]
    prompt_name: str | None = None


class TeiRerankBody(Truncating):
    """What `/rerank` takes in TEI's form."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


def _kind(body: Any) -> str:
    """Return which body of `/` is meant, by the fields that are there."""
    ranks = isinstance(body, dict) and "inputs" not in body and ("query" in body or "texts" in body)
    return "TeiRerankBody" if ranks else "EmbedBody"


EitherBody = Annotated[
    Annotated[EmbedBody, Tag("EmbedBody")] | Annotated[TeiRerankBody, Tag("TeiRerankBody")],
    Discriminator(_kind),
]


class SimilarityInputs(Body):
    """A sentence and those it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(Truncating):
    """How they are embedded."""

    prompt_name: str | None = None


class SimilarityBody(Body):
    """What `/similarity` takes."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeBody(Body):
    """What `/tokenize` takes."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeBody(Body):
    """What `/decode` takes."""

    ids: TokenIds | list[TokenIds]
    skip_special_tokens: bool = True


async def embed(body: EmbedBody, request: Request) -> Response:
    """Embed texts."""
    options = {"heads": '["dense"]', "normalize": body.normalize, "dim": body.dimensions}
    found = await _encoded(request, body, body.inputs, body.prompt_name, **options)
    vectors = [as_list(output["dense"]) for output in found.outputs]
    return as_json(vectors, truncated=found.truncated)


async def predict(body: EitherBody, request: Request) -> Response:
    """Embed or re-rank, as TEI does at its own address, which clients of Hugging Face ask."""
    if isinstance(body, TeiRerankBody):
        return await rerank_as_tei(body, request)
    return await embed(body, request)


async def embed_all(body: EmbedAllBody, request: Request) -> Response:
    """Return the last layer's states of all tokens of texts."""
    options = {"heads": '["multi_vector"]', "states": True}
    found = await _encoded(request, body, body.inputs, body.prompt_name, **options)
    states = [as_list(output["multi_vector"]) for output in found.outputs]
    return as_json(states, truncated=found.truncated)


async def embed_sparse(body: EmbedAllBody, request: Request) -> Response:
    """Return the weights of the vocabulary's terms, for models that have the sparse head."""
    options = {"heads": '["sparse"]'}
    found = await _encoded(request, body, body.inputs, body.prompt_name, **options)
    terms = [shown_terms(output["sparse"]) for output in found.outputs]
    return as_json(terms, truncated=found.truncated)


async def similarity(body: SimilarityBody, request: Request) -> Response:
    """Compare a sentence with others, as the model's recipe compares."""
    parameters = body.parameters or SimilarityParameters()
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    if len(texts) == 1:
        raise RequestError("sentences is empty; give at least one")
    options = {"heads": '["dense"]'}
    found = await _encoded(request, parameters, texts, parameters.prompt_name, **options)
    vectors = [output["dense"] for output in found.outputs]
    model = _first(request).model
    scores = model.similarity(vectors[:1], vectors[1:])[0]
    return as_json(as_list(scores), truncated=found.truncated)


async def rerank_as_tei(body: TeiRerankBody, request: Request) -> Response:
    """Order texts by how well they answer a query."""
    service = service_of(request)
    served = service.models.reranker(None)
    if body.truncation_direction not in (None, "right", "Right"):
        raise RequestError("a re-ranker shortens documents at the end; leave the direction out")
    ranking = Ranking(served=served, probability=not body.raw_scores)
    scores, cut = await service.rank(caller_of(request), ranking, body.query, body.texts)
    if cut.names and not body.truncate:
        long = [*(["the query"] if cut.query else []), *(f"text {n}" for n in cut.documents[:1])]
        verb = "is" if len(long) == 1 else "are"
        raise TooLongError(
            f"{' and '.join(long)} {verb} too long for the model {served.name!r}; {ALLOW}"
        )
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    rows: list[dict[str, Any]] = [{"index": index, "score": scores[index]} for index in order]
    if body.return_text:
        rows = [{**row, "text": body.texts[int(row["index"])]} for row in rows]
    return as_json(rows, truncated=cut.names)


async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """Show the tokens of texts; with `prompt_name`, of all that the model reads."""
    service = service_of(request)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    service.check_count(len(texts))
    check_texts(texts)
    model = _first(request).model
    return as_json(await service.beside(lambda: _tokens(service, model, body, texts)))


def _tokens(service: Service, model: Any, body: TokenizeBody, texts: list[str]) -> Any:
    """Return a row of tokens for each text.

    Raises:
        TooLargeError: more tokens than the limit.
    """
    if body.prompt_name is not None:
        found = model.render(texts, body.prompt_name)
        batches = found if isinstance(found, list) else [found]
        texts = batches[0].text
    core = core_of(model.tokenizer)
    special = set(model.tokenizer.all_special_ids)
    encodings = core.encode_batch(texts, add_special_tokens=body.add_special_tokens)
    service.check_tokens(sum(len(one) for one in encodings))
    return [
        [
            {
                "id": token,
                "text": text[start:stop] if token not in special else core.id_to_token(token),
                "special": token in special,
                "start": None if token in special else start,
                "stop": None if token in special else stop,
            }
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        for text, encoding in zip(texts, encodings, strict=True)
    ]


async def decode(body: DecodeBody, request: Request) -> Response:
    """Return the text of token ids."""
    service, model = service_of(request), _first(request).model
    rows: Any = body.ids if body.ids and isinstance(body.ids[0], list) else [body.ids]
    service.check_count(len(rows))
    service.check_tokens(sum(map(len, rows)))
    check_ids(rows, model.backbone.vocab_size)
    core = model.tokenizer.backend_tokenizer
    skip = body.skip_special_tokens
    texts = await service.beside(lambda: core.decode_batch(rows, skip_special_tokens=skip))
    return as_json(texts)


async def info(request: Request) -> Response:
    """Say what is served, and its limits."""
    service = service_of(request)
    models, limits = service.models, service.limits
    served = next(iter([*models.embedders.values(), *models.rerankers.values()]))
    embeds = served.name in models.embedders
    dtype = str(served.model.backbone.dtype).removeprefix("torch.") if embeds else "float32"
    kind = {"embedding": {"pooling": served.model.recipe.pooling.kind}} if embeds else {}
    return as_json(
        {
            "model_id": short_name(served.model.name),
            "served_model_name": served.name,
            "model_sha": None,
            "model_dtype": dtype,
            "model_type": kind or {"reranker": {"id2label": {"0": "LABEL_0"}}},
            "max_concurrent_requests": limits.queue_requests,
            "max_input_length": served.model.max_length if embeds else None,
            "max_batch_tokens": service.batcher.budget,
            "max_batch_requests": None,
            "max_client_batch_size": limits.inputs,
            "auto_truncate": False,
            "tokenization_workers": 1,
            "version": embedlm.__version__,
        }
    )


def _first(request: Request) -> Served:
    return service_of(request).models.embedder(None)[0]


async def _encoded(
    request: Request, body: Truncating, inputs: Any, role: str | None, **options: Any
) -> Encoded:
    """Embed texts by the first model, in a role that TEI calls a prompt's name."""
    service = service_of(request)
    served, adapter = service.models.embedder(None)
    side = served.model.recipe.prompt.truncation_side
    if body.truncate and (body.truncation_direction or side).lower() != side:
        raise RequestError(
            f"this model shortens texts at the {side}; leave truncation_direction out"
        )
    items, ids = items_of(inputs)
    encoding = Encoding(served=served, role=role, adapter=adapter, ids=ids, **options)
    return await service.encode(
        caller_of(request), encoding, items, truncate=bool(body.truncate), instead=ALLOW
    )


ROUTES = (
    ("POST", "/", predict),
    ("POST", "/embed", embed),
    ("POST", "/embed_all", embed_all),
    ("POST", "/embed_sparse", embed_sparse),
    ("POST", "/similarity", similarity),
    ("POST", "/tokenize", tokenize),
    ("POST", "/decode", decode),
    ("GET", "/info", info),
)
