"""What the page asks for: what is served, how texts compare, and what a model sees of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from starlette.requests import Request
from starlette.responses import Response

import embedlm
from embedlm.embedder import Embedder
from embedlm.readout import Embeddings
from embedlm.serving.answers import as_json
from embedlm.serving.bodies import ALLOW, Body, Count, items_of
from embedlm.serving.encoding import Encoding, Item
from embedlm.serving.failures import RequestError, TooLargeError
from embedlm.serving.plane import plane
from embedlm.serving.service import Encoded, caller_of, service_of
from embedlm.serving.terms import marked_words, spelled, weighted_terms

__all__ = ["ROUTES"]

MOST = 256
"""Texts that are compared with each other at once."""
MOST_VECTORS = 4096
"""Vectors of tokens, likewise."""


class PromptBody(Body):
    """Texts, and how a model is to read them."""

    texts: list[str] = Field(max_length=MOST)
    model: str | None = None
    recipe: str | None = Field(None, description="One that fits the model; null: its own.")
    role: str | None = None
    instruction: str | list[str] | None = None
    demonstrations: list[dict[str, str]] | None = None
    heads: list[str | dict[str, dict[str, Any]]] | None = None
    max_length: Count | None = None


class CompareBody(PromptBody):
    """What `/v1/compare` takes."""

    dim: Count | None = None
    truncate: bool = Field(False, description="Shorten texts that are too long.")


async def _encoding(
    body: PromptBody, request: Request, **options: Any
) -> tuple[Encoding, list[Item]]:
    service = service_of(request)
    if not body.texts:
        raise RequestError("texts is empty; give at least one")
    served, adapter = service.models.embedder(body.model)
    served = await service.recipes.model(service, caller_of(request), served, body.recipe)
    items, _ = items_of(body.texts, body.instruction)
    encoding = Encoding(
        served=served,
        role=body.role,
        demonstrations=None if body.demonstrations is None else json.dumps(body.demonstrations),
        heads=None if body.heads is None else json.dumps(body.heads),
        max_length=body.max_length,
        adapter=adapter,
        instructed=body.instruction is not None,
        **options,
    )
    return encoding, items


async def compare(body: CompareBody, request: Request) -> Response:
    """Score texts with each other; show them in a plane, and the terms of a sparse head.

    `scores` has a matrix for each head. `places` are points of the first head's scores (kernel
    PCA), and `shown` is the share of the texts' differences that they show. `terms` are the
    heaviest of each text, and `words` the places in it, [start, stop, weight] in characters.
    """
    service = service_of(request)
    encoding, items = await _encoding(body, request, dim=body.dim)
    found = await service.encode(
        caller_of(request), encoding, items, truncate=body.truncate, instead=ALLOW
    )
    gathered = _gathered(found, encoding.embedder.backbone.vocab_size)
    answer = {
        "model": body.model or encoding.served.name,
        "recipe": encoding.embedder.recipe.name,
        "tokens": found.tokens,
        "truncated": found.truncated,
    }
    told = await service.beside(lambda: _told(encoding.embedder, body.texts, gathered))
    return as_json({**answer, **told}, truncated=found.truncated)


def _told(model: Embedder, texts: Sequence[str], gathered: Embeddings) -> dict[str, Any]:
    """Return scores, places and terms."""
    scores = {head: model.similarity(gathered, gathered, heads=[head]) for head in gathered.heads}
    places, shown = plane(next(iter(scores.values())))
    told: dict[str, Any] = {
        "scores": {
            head: np.round(matrix.astype(float), 5).tolist() for head, matrix in scores.items()
        },
        "places": np.round(places, 5).tolist(),
        "shown": round(shown, 4),
    }
    if gathered.sparse is not None:
        rows = [(row.indices, row.data) for row in map(gathered.sparse.getrow, range(len(texts)))]
        told["terms"] = [weighted_terms(row, model.tokenizer) for row in rows]
        told["words"] = [
            marked_words(text, row, model.tokenizer) for text, row in zip(texts, rows, strict=True)
        ]
    return told


def _gathered(found: Encoded, terms: int) -> Embeddings:
    """Return the outputs of all texts as the library gives them.

    Raises:
        TooLargeError: more vectors of tokens than are compared at once.
    """
    vectors = sum(len(one["multi_vector"]) for one in found.outputs if "multi_vector" in one)
    if vectors > MOST_VECTORS:
        raise TooLargeError(
            f"the texts have {vectors:,} token vectors, and {MOST_VECTORS:,} are compared at once; "
            "send fewer or shorter texts, or ask for other heads"
        )
    values: dict[str, Any] = {}
    for head, first in found.outputs[0].items():
        every = [output[head] for output in found.outputs]
        if isinstance(first, tuple):
            ends = np.cumsum([0, *(len(ids) for ids, _ in every)])
            ids, weights = (np.concatenate(part) for part in zip(*every, strict=True))
            values[head] = csr_matrix((weights, ids, ends), shape=(len(every), terms))
        else:
            values[head] = np.stack(every) if first.ndim == 1 else every
    return Embeddings(**values)


async def render(body: PromptBody, request: Request) -> Response:
    """Show what the model would see of texts, and what is pooled; as `embedlm render --json`.

    `prompts` has a list for each text: a recipe may have several prompts. `shares` say for each
    head how much each token counts; `pieces` are the tokens as they read.
    """
    service = service_of(request)
    encoding, items = await _encoding(body, request)
    found = await service.render(caller_of(request), encoding, items)
    model = encoding.embedder
    for prompt in chain.from_iterable(found):
        prompt["pieces"] = spelled(model.tokenizer, prompt["ids"])
    answer = {
        "model": body.model or encoding.served.name,
        "recipe": model.recipe.name,
        "prompts": found,
    }
    return as_json(answer)


async def served(request: Request) -> Response:
    """List models with the recipes that fit them, indexes with their modes, and limits.

    Of each recipe it tells the heads that it gives and that may be asked for beside them, the
    roles, and the roles that take an instruction.
    """
    service, caller = service_of(request), caller_of(request)
    models = [
        {
            "name": name,
            "dim": one.model.dim,
            "max_length": one.model.max_length,
            "adapters": list(one.model.adapters),
            "recipes": await service.recipes.fit(service, caller, one),
        }
        for name, one in service.models.embedders.items()
    ]
    indexes = [
        {"name": name, "modes": mounted.index.modes, "model": mounted.served.name}
        for name, mounted in service.indexes.items()
    ]
    limits = {"texts": min(MOST, service.limits.inputs), "tokens": service.limits.request_tokens}
    return as_json(
        {"version": embedlm.__version__, "models": models, "indexes": indexes, "limits": limits}
    )


ROUTES = (
    ("GET", "/v1/served", served),
    ("POST", "/v1/compare", compare),
    ("POST", "/v1/render", render),
)
