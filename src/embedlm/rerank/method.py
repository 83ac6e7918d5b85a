"""How a re-ranker reads a pair: the published ways, and the way a folder's files ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from embedlm.errors import RecipeError, closest
from embedlm.schema.validation import validated

__all__ = ["Method", "find_method", "methods"]

_QWEN = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {text}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_BGE = (
    "A: {query}\nB: {text}\nGiven a query A and a passage B, determine whether the passage "
    "contains an answer to the query by providing a prediction of either 'Yes' or 'No'."
)
_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


class Method(BaseModel):
    """How a pair becomes a score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "custom"
    kind: Literal["classifier", "answer"] = Field(
        "answer",
        description="classifier: a cross-encoder's own output; answer: the logit of an answer that "
        "a language model would give.",
    )
    template: str = Field(
        _BGE, description="What a language model reads: {query}, {text} and maybe {instruction}."
    )
    instruction: str = Field("", description="Fills {instruction}.")
    yes: str = Field("Yes", description="The answer whose logit is the score.")
    no: str | None = Field(None, description="Its opposite, whose logit is subtracted.")
    probability: bool = Field(
        False, description="Whether scores are given as sigmoid(score), between 0 and 1."
    )
    max_length: PositiveInt | None = Field(None, description="In tokens; None: the model's own.")

    @model_validator(mode="after")
    def _slots(self) -> Method:
        if self.kind == "answer":
            missing = [slot for slot in ("{query}", "{text}") if slot not in self.template]
            if missing:
                raise RecipeError(f"the template of a re-ranker has no {' and no '.join(missing)}")
        return self


_METHODS = {
    method.name: method
    for method in (
        Method(name="cross-encoder", kind="classifier", probability=True),
        Method(
            name="qwen3-reranker",
            template=_QWEN,
            instruction=_SEARCH,
            yes="yes",
            no="no",
            probability=True,
            max_length=8192,
        ),
        Method(name="bge-reranker-gemma", template=_BGE, max_length=1024),
        Method(name="yes-no", template=_BGE, no="No"),
    )
}


def methods() -> list[str]:
    """Return the names of the built-in ways to score a pair."""
    return list(_METHODS)


def find_method(given: str | Mapping[str, Any] | Method | None, config: Any, source: str) -> Method:
    """Return the method that was given, or the one that a model's config asks for.

    Args:
        given: a name, a mapping of fields, a `Method`, or None.
        config: of transformers.
        source: folder or hub id.

    Raises:
        RecipeError: no such method.
    """
    if isinstance(given, Method):
        return given
    if isinstance(given, Mapping):
        return validated(Method, dict(given), str(given.get("name", "custom")))
    if given is None:
        return _METHODS[_recognised(config, source)]
    if given not in _METHODS:
        raise RecipeError(
            f"re-ranker method {given!r} is not known; allowed: {', '.join(_METHODS)}."
            + closest(given, methods())
        )
    return _METHODS[given]


def _recognised(config: Any, source: str) -> str:
    named = f"{source} {getattr(config, '_name_or_path', '')}".lower()
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return "cross-encoder"
    if config.model_type == "qwen3" and "rerank" in named:
        return "qwen3-reranker"
    if config.model_type == "gemma" and "rerank" in named:
        return "bge-reranker-gemma"
    return "yes-no"
