"""The prompt of a recipe: the templates around a text, and how the result becomes tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from embedlm.errors import RecipeError, TemplateError, closest
from embedlm.schema.base import Part
from embedlm.schema.template import DEMONSTRATION_SLOTS, fill, parse_template

__all__ = ["Expansion", "Message", "Prompt", "Template"]


class Message(Part):
    """One turn of a chat prompt. A last turn by the assistant is continued, not closed."""

    role: Literal["system", "user", "assistant"]
    content: str


Template = str | tuple[Message, ...] | tuple[str, ...]
"""One template, one chat, or several templates whose vectors are averaged."""


Clean = Literal["none", "strip", "strip_all", "lower", "promptbert", "prompteol", "siglip"]


class Expansion(Part):
    """Mask tokens that fill a query up (ColBERT)."""

    length: int = Field(32, gt=0, le=65_536, description="Tokens that the query has with them.")
    role: str = "query"
    attended: bool = Field(False, description="Whether tokens look at the expansion.")


class Prompt(Part):
    """What the model sees around a text."""

    default: Template | None = Field(None, description="Template without a role.")
    query: Template | None = Field(None, description="Template of role `query`.")
    document: Template | None = Field(None, description="Template of role `document`.")
    roles: dict[str, Template] = Field(
        default_factory=dict, description="Templates of further roles, by name."
    )
    instruction: str | dict[str, str] | None = Field(
        None, description="Fills {instruction}; one for all roles, or by role."
    )
    demonstration: str | None = Field(
        None, description="Template of one demonstration: {instruct}, {query}, {response}."
    )
    demonstrations: tuple[dict[str, str], ...] = Field(
        (), description="Default demonstrations; each fills `demonstration`."
    )
    separator: str = Field("", description="Written after each demonstration.")
    clean: Clean = Field(
        "none",
        description="Text clean-up before the template; strip_all: white space around the filled "
        "prompt goes too; lower: the filled prompt is read in lower case, control tokens apart; "
        "promptbert: a full stop where none is; prompteol: also quotes to apostrophes and a final "
        "? to a full stop; siglip: lower case, without punctuation, one blank between words.",
    )
    tokenize: Literal["joined", "pieces"] = Field(
        "joined", description="Tokenise the joined string, or each segment alone."
    )
    special_tokens: Literal["tokenizer", "none"] = Field(
        "tokenizer", description="Whether the tokenizer adds its own (BOS, CLS, SEP, EOS)."
    )
    special_tokens_in_text: Literal["text", "tokens", "refuse"] = Field(
        "text",
        description="How a control token (such as </s>) is read that a text, an instruction or a "
        "demonstration spells out. text: as plain text; tokens: as the control token; refuse: such "
        "a text is an error.",
    )
    truncate: Literal["text", "turn", "slot", "pieces", "end"] = Field(
        "text",
        description="text: shorten the text until all fits max_length; turn: the same, but the "
        "demonstrations do not count; slot: max_length counts the text alone; pieces: every "
        "segment is cut to max_length; end: cut the rendered end.",
    )
    truncation_side: Literal["right", "left"] = Field(
        "right",
        description="left: what is too long loses its start, the template's part too; only the "
        "tokenizer's special tokens and {eos} stay (sentence-transformers, with a tokenizer whose "
        "truncation_side is left). Needs truncate: text and tokenize: joined.",
    )
    max_length: PositiveInt | dict[str, PositiveInt] | None = Field(
        None, description="In tokens; one for all roles, or by role. None: the model's own."
    )
    instruction_end: Literal["keep", "full_stop"] = Field(
        "keep",
        description="full_stop: white space around an instruction goes, and a full stop is added "
        "where it ends in no punctuation; where nothing is left, the recipe's own is taken "
        "(Qwen3-VL-Embedding).",
    )
    empty: str = Field(
        "", description="Takes the place of an empty text that stands alone, without an image."
    )
    text_length: PositiveInt | None = Field(
        None,
        description="In tokens; a text that has more loses words from its end before it is put "
        "into the template (LLM2Vec).",
    )
    expansion: Expansion | None = None

    @field_validator("clean", mode="before")
    @classmethod
    def _clean_flag(cls, value: Any) -> Any:
        return {True: "prompteol", False: "none", None: "none"}.get(value, value)

    @field_validator("default", "query", "document", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError("a template stands in quotes: YAML reads bare braces as a mapping")
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_end(self) -> Prompt:
        if self.truncation_side == "right":
            return self
        needed = {"truncate": "text", "tokenize": "joined", "text_length": None}
        other = {
            name: getattr(self, name) for name in needed if getattr(self, name) != needed[name]
        }
        if other:
            name, value = next(iter(other.items()))
            raise RecipeError(
                f"prompt.truncation_side is left, and prompt.{name} is {value}, which cuts "
                "otherwise; with left, leave it out"
            )
        return self

    @model_validator(mode="after")
    def _of_known_roles(self) -> Prompt:
        for field in ("max_length", "instruction"):
            value = getattr(self, field)
            self.check_roles(f"prompt.{field}", value if isinstance(value, dict) else ())
        self.check_roles(
            "prompt.expansion", () if self.expansion is None else [self.expansion.role]
        )
        return self

    def check_roles(self, field: str, names: Iterable[str]) -> None:
        """Refuse what a field says of a role that there is none of: nothing would read it.

        Raises:
            RecipeError: names the field and the roles that there are.
        """
        roles = ["query", "document", *self.roles, "default"]
        for name in names:
            if name not in roles:
                raise RecipeError(
                    f"{field}: {name!r} is no role of this recipe; there are {', '.join(roles)}."
                    + closest(name, roles)
                )

    @model_validator(mode="after")
    def _check_templates(self) -> Prompt:
        for template in (self.default, self.query, self.document, *self.roles.values()):
            if template is not None:
                _check_template(template)
        if self.demonstration is not None:
            fill(self.demonstration, {}, DEMONSTRATION_SLOTS)
        return self


def _check_template(template: Template) -> None:
    """Raise TemplateError for a template that cannot be rendered."""
    if isinstance(template, str):
        parse_template(template)
    elif not template:
        raise TemplateError("a list of templates is empty: give at least one")
    elif isinstance(template[0], Message):
        parse_template("".join(one.content for one in template if isinstance(one, Message)))
    else:
        for one in template:
            parse_template(str(one))
