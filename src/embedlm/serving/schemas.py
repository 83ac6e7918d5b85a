"""What the routes answer, as OpenAPI tells it; the answers themselves are written by hand."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "CohereEmbeddings",
    "CohereError",
    "CohereRanks",
    "Compared",
    "Embeddings",
    "Encoded",
    "FittingRecipe",
    "Health",
    "Hit",
    "Hits",
    "Info",
    "JinaError",
    "JinaRanks",
    "Meta",
    "ModelList",
    "OneEmbedding",
    "OneModel",
    "OneStore",
    "OpenAIError",
    "OpenAIFault",
    "Rank",
    "RankedText",
    "Relevance",
    "RenderedTexts",
    "ServedIndex",
    "ServedLimits",
    "ServedList",
    "ServedModel",
    "Shown",
    "ShownPrompt",
    "StoreHit",
    "StoreList",
    "StorePage",
    "StoreText",
    "TeiError",
    "Term",
    "Token",
    "TokenUsage",
    "WeightedTerm",
]

Vector = list[float]
Numbers = dict[str, float]


class Shown(BaseModel):
    """A part of an answer, without further fields."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class OpenAIFault(Shown):
    """What is wrong, as OpenAI says it."""

    message: str
    type: str
    param: None
    code: str


class OpenAIError(Shown):
    """An error of OpenAI's interface."""

    error: OpenAIFault


class TeiError(Shown):
    """An error of TEI's interface."""

    error: str
    error_type: str


class CohereError(Shown):
    """An error of Cohere's interface."""

    message: str


class JinaError(Shown):
    """An error of Jina's interface."""

    detail: str


class OneEmbedding(Shown):
    """A vector, as numbers or in base64."""

    object: Literal["embedding"]
    index: int
    embedding: Vector | str


class TokenUsage(Shown):
    """How many tokens were read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Shown):
    """What `/v1/embeddings` answers."""

    object: Literal["list"]
    data: list[OneEmbedding]
    model: str
    usage: TokenUsage


class OneModel(Shown):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Shown):
    """The models that are served."""

    object: Literal["list"]
    data: list[OneModel]


class OneStore(Shown):
    """An index that is mounted."""

    id: str
    object: Literal["vector_store"]
    created_at: int
    name: str
    status: str
    usage_bytes: int
    file_counts: dict[str, int]
    metadata: None
    last_active_at: None


class StoreList(Shown):
    """The indexes that are mounted."""

    object: Literal["list"]
    data: list[OneStore]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


class StoreText(Shown):
    """The text of a hit."""

    type: Literal["text"]
    text: str


class StoreHit(Shown):
    """A hit in OpenAI's form."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | float | bool]
    content: list[StoreText]


class StorePage(Shown):
    """What a search in a vector store answers."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[StoreHit]
    has_more: bool
    next_page: None


class Term(Shown):
    """A term of the vocabulary and its weight."""

    index: int
    value: float


class Token(Shown):
    """A token of a text; special ones stand for none of it."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Rank(Shown):
    """A text's place in TEI's form."""

    index: int
    score: float
    text: str | None = None


class Info(Shown):
    """What TEI's `/info` answers."""

    model_id: str
    served_model_name: str
    model_sha: None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int | None
    max_batch_tokens: int
    max_batch_requests: None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str


class Meta(Shown):
    """What Cohere says beside its answers."""

    api_version: dict[str, str]
    billed_units: Numbers
    warnings: list[str] | None = None


class CohereEmbeddings(Shown):
    """What `/v2/embed` answers."""

    id: str
    embeddings: dict[str, list[Vector | str]]
    texts: list[str]
    meta: Meta


class RankedText(Shown):
    """A document, where it was asked for."""

    text: str


class Relevance(Shown):
    """A document's place."""

    index: int
    relevance_score: float
    document: RankedText | None = None


class CohereRanks(Shown):
    """What `/v2/rerank` answers."""

    id: str
    results: list[Relevance]
    meta: Meta


class JinaRanks(Shown):
    """What `/v1/rerank` answers."""

    id: str
    results: list[Relevance]
    model: str
    usage: dict[str, int]


class Encoded(Shown):
    """What `/v1/encode` answers: the outputs of each head, one a text."""

    model: str
    outputs: dict[str, list[Any]]
    tokens: int
    truncated: list[int]


class Hit(Shown):
    """A hit, as the library gives it."""

    id: str | int
    score: float
    text: str
    rank: int
    file: str
    line: int
    chunk: int
    metadata: dict[str, Any]
    sentence: list[int]
    image: str | None = None


class Hits(Shown):
    """What `/v1/search` answers, best first."""

    hits: list[Hit]


class WeightedTerm(Shown):
    """A term of a sparse head as it reads, and its weight."""

    id: int
    term: str
    weight: float


class Compared(Shown):
    """What `/v1/compare` answers: scores by head, and a plane."""

    model: str
    recipe: str
    tokens: int
    truncated: list[int]
    scores: dict[str, list[Vector]]
    places: list[Vector]
    shown: float
    terms: list[list[WeightedTerm]] | None = None
    words: list[list[Vector]] | None = None


class ShownPrompt(Shown):
    """A prompt of a text, token by token."""

    text: str
    ids: list[int]
    tokens: list[str]
    pieces: list[str]
    segments: list[str]
    truncated: bool
    shares: dict[str, Vector]


class RenderedTexts(Shown):
    """What `/v1/render` answers: the prompts of each text."""

    model: str
    recipe: str
    prompts: list[list[ShownPrompt]]


class FittingRecipe(Shown):
    """A recipe that fits a model, and what a request may choose with it."""

    name: str
    summary: str
    heads: list[str]
    more_heads: list[str]
    roles: list[str]
    instructed: list[str | None]
    pooling: dict[str, Any]


class ServedModel(Shown):
    """A model and its recipes, its own first."""

    name: str
    dim: int
    max_length: int | None
    adapters: list[str]
    recipes: list[FittingRecipe]


class ServedIndex(Shown):
    """An index and its modes of search."""

    name: str
    modes: list[str]
    model: str


class ServedLimits(Shown):
    """What a request may hold."""

    texts: int = Field(
        description="Texts of a request to /v1/compare or /v1/render; other routes take more."
    )
    tokens: int = Field(description="Tokens of a request to any route.")


class ServedList(Shown):
    """What `/v1/served` answers."""

    version: str
    models: list[ServedModel]
    indexes: list[ServedIndex]
    limits: ServedLimits


class Health(Shown):
    """Whether new requests should come here."""

    status: Literal["ok", "draining"]
