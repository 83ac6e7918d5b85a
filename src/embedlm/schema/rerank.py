"""How a re-ranker reads a pair and scores it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from embedlm.errors import RecipeError
from embedlm.schema.base import Name, Part

__all__ = ["YES_NO", "Method"]

YES_NO = (
    "A: {query}\nB: {text}\nGiven a query A and a passage B, determine whether the passage "
    "contains an answer to the query by providing a prediction of either 'Yes' or 'No'."
)
"""The question of BGE's re-rankers on language models."""


class Method(Part):
    """How a pair of query and document becomes a score."""

    name: Name = "custom"
    kind: Literal["classifier", "answer"] = Field(
        "answer",
        description="classifier: a cross-encoder's own output; answer: the logit of an answer that "
        "a language model would give.",
    )
    template: str = Field(
        YES_NO, description="What a language model reads: {query}, {text} and maybe {instruction}."
    )
    instruction: str = Field("", description="Fills {instruction}.")
    yes: str = Field("Yes", description="The answer whose logit is the score.")
    no: str | None = Field(None, description="Its opposite, whose logit is subtracted.")
    probability: bool = Field(
        False, description="Whether scores are given as sigmoid(score), between 0 and 1."
    )
    max_length: PositiveInt | None = Field(None, description="In tokens; None: the model's own.")

    @model_validator(mode="after")
    def _check_slots(self) -> Method:
        if self.kind == "answer":
            missing = [slot for slot in ("{query}", "{text}") if slot not in self.template]
            if missing:
                raise RecipeError(
                    f"the template of a re-ranker has no {' and no '.join(missing)}: say where "
                    "query and text go"
                )
        return self
