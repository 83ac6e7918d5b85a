"""What of a recipe sentence-transformers can do: prefix prompts, a plain pooling, Dense modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedlm.prompt.special import surround
from embedlm.prompt.template import parse_template, spell_demonstrations
from embedlm.recipe import Dense, Recipe

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Prefixes", "is_expressible", "pools_alike", "prefixes_of"]


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The recipe's prompts as sentence-transformers has them."""

    named: dict[str, str]
    """What stands before the text, by role; `default` where none is given."""
    default: str | None
    """The name that is taken where none is given; None: no prompt."""
    eos: bool
    """Whether the templates close with {eos}."""


def prefixes_of(recipe: Recipe) -> Prefixes | None:
    """Return the prompts that stand before the text; None where a template is more than that."""
    prompt = recipe.prompt
    own = {"query": prompt.query, "document": prompt.document, **prompt.roles}
    fallback = prompt.default or prompt.document or prompt.query or "{text}"
    found = {role: _prefix(recipe, role, own[role] or fallback) for role in own}
    found["default"] = _prefix(recipe, None, fallback)
    parts = [part for part in found.values() if part is not None]
    if len(parts) < len(found) or len({eos for _, eos in parts}) > 1:
        return None
    named = {role: part[0] for role, part in found.items() if part is not None}
    bare = named.pop("default")
    if not bare:
        return Prefixes(named, None, parts[0][1])
    return Prefixes({**named, "default": bare}, "default", parts[0][1])


def _prefix(recipe: Recipe, role: str | None, template: Any) -> tuple[str, bool] | None:
    """Return a template's prefix and whether {eos} closes it."""
    if not isinstance(template, str):
        return None
    given = recipe.prompt.instruction
    instruction = given.get(role or "default", "") if isinstance(given, dict) else given or ""
    values = {
        "instruction": instruction,
        "demonstrations": spell_demonstrations(recipe.prompt, None),
    }
    pieces = [p for p in parse_template(template) if not p.when or values[p.when]]
    kinds = [piece.kind for piece in pieces]
    place = kinds.index("text")
    closing = kinds[place + 1 :]
    if closing not in ([], ["eos"]) or not {*kinds[:place]} <= {"literal", *values}:
        return None
    before = "".join(values.get(piece.kind, piece.value) for piece in pieces[:place])
    return before, bool(closing)


def is_expressible(recipe: Recipe) -> bool:
    """Tell whether sentence-transformers can do what the recipe does.

    White space around a text is stripped by some recipes and not by sentence-transformers; that
    is no hindrance.
    """
    prompt, pooling = recipe.prompt, recipe.pooling
    return (
        prefixes_of(recipe) is not None
        and prompt.clean in ("none", "strip", "strip_all")
        and prompt.tokenize == "joined"
        and prompt.special_tokens == "tokenizer"
        and (pooling.over == "all" or set(pooling.over) in ({"text"}, {"text", "eos"}))
        and (pooling.over == "all" or pooling.boundary in ("count_prefix", "count_instruction"))
        and pooling.layer == -1
        and pooling.weights == "none"
        and pooling.latent is None
        and recipe.backbone.kind == "transformer"
        and recipe.transform is None
        and len(recipe.heads) == 1
        and isinstance(recipe.heads[0], Dense)
    )


def pools_alike(embedder: Embedder, prefixes: Prefixes) -> bool:
    """Tell whether leaving the prompt out (include_prompt false) pools the recipe's tokens.

    sentence-transformers counts the prompt's tokens, with what the tokenizer puts before it, and
    pools all that follow; without a prompt it pools all.
    """
    over = embedder.recipe.pooling.over
    if over == "all":
        return True
    before, after = surround(embedder.tokenizer)
    eos = embedder.tokenizer.eos_token_id
    closing = [*after, eos] if prefixes.eos and after[-1:] != [eos] else after
    wanted = [eos] if "eos" in over and prefixes.eos else []
    bare = prefixes.default is None or "" in prefixes.named.values()
    return closing == wanted and not (before and bare)
