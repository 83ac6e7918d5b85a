"""sentence-transformers' prompts and a recipe's templates: which is which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedlm.persistence.expressible import Prefixes, prefixes_of
from embedlm.schema.recipe import Recipe
from embedlm.schema.template import escape

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["RolePrompt", "Voice", "prompts_of", "with_prompts"]


class RolePrompt(str):
    """A prompt that is the recipe's own for a role, so that the role's template is rendered."""

    role: str | None

    def __new__(cls, prompt: str, role: str | None) -> RolePrompt:
        """Return the prompt's text with its role (None: the recipe's default)."""
        marked = super().__new__(cls, prompt)
        marked.role = role
        return marked

    def __reduce__(self) -> tuple[Any, ...]:
        return RolePrompt, (str(self), self.role)


def prompts_of(recipe: Recipe) -> Prefixes:
    """Return the prompts of a recipe by role, and the name of the one that is the default.

    Where a template is more than a prefix, its role has an empty prompt: the template is rendered,
    and a string could not say it.
    """
    prefixes = prefixes_of(recipe)
    if prefixes is not None:
        return prefixes
    return Prefixes(dict.fromkeys(["query", "document", *recipe.prompt.roles], ""), None, False)


def with_prompts(recipe: Recipe, prompts: Mapping[str, str], default: str | None) -> Recipe:
    """Return a recipe whose templates are these prompts; the same where nothing differs.

    Args:
        recipe: one whose templates are prefixes.
        prompts: by role.
        default: the name of the prompt that is taken where none is asked for; None: no prompt.
    """
    prefixes = prompts_of(recipe)
    if (dict(prompts), default) == (prefixes.named, prefixes.default):
        return recipe
    templates = {name: _template(prompt, prefixes.eos) for name, prompt in prompts.items()}
    fallback = templates[default] if default is not None else _template("", prefixes.eos)
    named = {name: templates.pop(name, fallback) for name in ("query", "document")}
    templates.pop("default", None)
    return recipe.override(
        {
            "prompt.default": fallback,
            "prompt.query": named["query"],
            "prompt.document": named["document"],
            "prompt.roles": templates,
        }
    )


def _template(prompt: str, eos: bool) -> str:
    return escape(prompt) + "{text}" + ("{eos}" if eos else "")


@dataclass(frozen=True, slots=True)
class Voice:
    """How a prompt of sentence-transformers is spoken by an embedder."""

    embedder: Embedder
    role: str | None = None
    lead: str = ""
    """What is written before each text, inside the template."""

    @classmethod
    def of(cls, embedder: Embedder, prompt: str | None) -> Voice:
        """Return the embedder and the role that render a prompt.

        A string takes the place of the recipe's prefix. Where the recipe's template is more than a
        prefix, the string is written before the text, inside the template.
        """
        if isinstance(prompt, RolePrompt):
            return cls(embedder, prompt.role)
        recipe = embedder.recipe
        prefixes = prefixes_of(recipe)
        if prefixes is None:
            return cls(embedder, None, prompt or "")
        default = prefixes.named[prefixes.default] if prefixes.default else ""
        if (prompt or "") == default:
            return cls(embedder)
        template = _template(prompt or "", prefixes.eos)
        return cls(embedder.with_recipe(recipe.override({"prompt.default": template})))

    def led(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Return inputs with the lead before each text."""
        if not self.lead:
            return inputs
        return [
            {**each, "text": self.lead + each["text"]}
            if isinstance(each, Mapping)
            else self.lead + each
            for each in inputs
        ]
