"""How a re-ranker reads a pair and scores it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, StrictStr, model_validator

from embedlm.errors import RecipeError
from embedlm.schema.base import Name, Part
from embedlm.schema.template import escape

__all__ = ["YES_NO", "Method"]

YES_NO = (
    "A: {query}\nB: {text}\nGiven a query A and a passage B, determine whether the passage "
    "contains an answer to the query by providing a prediction of either 'Yes' or 'No'."
)
"""The question of BGE's re-rankers on language models."""
_BLOCK = re.compile(r"\{\?instruction\}(.*?)\{/instruction\}", re.DOTALL)
_MARK = re.compile(r"(\{[?/]?instruction\}|\{query\}|\{text\})")
_SLOTS = {
    "{text}": "{text}",
    "{query}": "{instruction}",
    "{instruction}": "{demonstrations}",
    "{?instruction}": "{?demonstrations}",
    "{/instruction}": "{/demonstrations}",
}
"""Marks of a method's template, and the slots of a recipe's that they are written as."""


_OF_ANSWERS = ("yes", "no", "divisor")
"""Fields by which an answer becomes a score."""
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
    special_tokens_in_text: Literal["text", "tokens", "refuse"] = Field(
        "text",
        description="How a control token is read that a query, a document or an instruction "
        "spells out; where the tokenizer joins the pair, it is always read as a token.",
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

    @model_validator(mode="after")
    def _read_fields(self) -> Method:
        """Refuse what nothing reads beside the fields that rule it out."""
        unread: list[tuple[str, str]] = []
        if self.kind == "classifier":
            unread += [(name, "kind: classifier asks for no answer") for name in _OF_ANSWERS]
        if not self.takes_instruction:
            unread.append(("instruction", "the template has no {instruction}"))
        if self.template is None:
            joined = "without a template the tokenizer joins the pair in its own way"
            unread += [("special_tokens", joined), ("special_tokens_in_text", joined)]
        for name, reason in unread:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise RecipeError(
                    f"{name} of the re-ranker {self.name!r} is {getattr(self, name)!r} and has no "
                    f"effect: {reason}; leave it out"
                )
        return self

    @property
    def takes_instruction(self) -> bool:
        """Whether the template has a place for an instruction."""
        return self.template is not None and "{instruction}" in self.template

    def prompt(self, limit: int | None) -> dict[str, Any]:
        """Return the prompt of a recipe that writes a pair as the template does.

        The document is the recipe's text, the query its instruction, and an instruction its one
        demonstration, so that what the template itself spells is told from what the pair does.
        """
        parts = _MARK.split(self.template or "{text}")
        return {
            "default": "".join(_SLOTS[part] if part in _SLOTS else escape(part) for part in parts),
            "demonstration": "{query}" if self.takes_instruction else None,
            "max_length": limit,
            "special_tokens": self.special_tokens,
            "special_tokens_in_text": self.special_tokens_in_text,
        }
