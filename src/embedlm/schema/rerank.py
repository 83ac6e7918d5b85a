"""How a re-ranker reads a pair and scores it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, StrictStr, model_validator

from embedlm.errors import RecipeError
from embedlm.schema.base import Name, Part

__all__ = ["YES_NO", "Method"]

YES_NO = (
    "A: {query}\nB: {text}\nGiven a query A and a passage B, determine whether the passage "
    "contains an answer to the query by providing a prediction of either 'Yes' or 'No'."
)
"""The question of BGE's re-rankers on language models."""
_BLOCK = re.compile(r"\{\?instruction\}(.*?)\{/instruction\}", re.DOTALL)
_SLOT = re.compile(r"\{(instruction|query)\}")


TokenId = Annotated[int, Field(strict=True, ge=0)]


class Method(Part):
    """How a pair of query and document becomes a score."""

    name: Name = "custom"
    kind: Literal["classifier", "answer"] = Field(
        "answer",
        description="classifier: a cross-encoder's own output; answer: the logit of an answer that "
        "a language model would give.",
    )
    template: str | None = Field(
        YES_NO,
        description="What the model reads: {query}, {text} and maybe {instruction}; the part in "
        "{?instruction}...{/instruction} is left out where there is none. null: the tokenizer "
        "joins the pair in its own way (a classifier's default).",
    )
    instruction: str = Field("", description="Fills {instruction}.")
    yes: StrictStr | TokenId = Field(
        "Yes", description="The answer whose logit is the score; a number is a token's id."
    )
    no: StrictStr | TokenId | None = Field(
        None, description="Its opposite, whose logit is subtracted; a number is a token's id."
    )
    divisor: PositiveFloat = Field(1.0, description="The logit is divided by it.")
    probability: bool = Field(
        False, description="Whether scores are given as sigmoid(score), between 0 and 1."
    )
    strip: bool = Field(False, description="Remove white space around query and document.")
    lower: bool = Field(False, description="The tokenizer reads everything in lower case.")
    special_tokens: Literal["tokenizer", "none"] = Field(
        "tokenizer", description="Whether the tokenizer adds its own around a filled template."
    )
    max_length: PositiveInt | None = Field(None, description="In tokens; None: the model's own.")

    @model_validator(mode="before")
    @classmethod
    def _pair_of_a_classifier(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "classifier":
            return {"template": None, **data}
        return data

    @model_validator(mode="after")
    def _check_slots(self) -> Method:
        if self.template is None:
            return self
        missing = [slot for slot in ("{query}", "{text}") if slot not in self.template]
        if missing:
            raise RecipeError(
                f"the template of a re-ranker has no {' and no '.join(missing)}: say where "
                "query and text go"
            )
        if self.template.count("{text}") > 1:
            raise RecipeError("the template of a re-ranker has {text} twice; write it once")
        halves = map(_BLOCK.sub, ("", ""), self.template.split("{text}"))
        if any("{?instruction}" in half or "{/instruction}" in half for half in halves):
            raise RecipeError(
                "{?instruction}...{/instruction} opens and closes on the same side of {text}"
            )
        return self

    @property
    def takes_instruction(self) -> bool:
        """Whether the template has a place for an instruction."""
        return self.template is not None and "{instruction}" in self.template

    def around(self, query: str, instruction: str) -> tuple[str, str]:
        """Return what the filled template has before the document, and what it has after it."""
        values = {"query": query, "instruction": instruction}
        before, _, after = (self.template or "{text}").partition("{text}")
        kept = r"\1" if instruction else ""
        before, after = _BLOCK.sub(kept, before), _BLOCK.sub(kept, after)
        # One pass: braces of a query or an instruction are text.
        filled = [_SLOT.sub(lambda slot: values[slot.group(1)], half) for half in (before, after)]
        return filled[0], filled[1]
