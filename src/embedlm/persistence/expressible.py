"""What of a recipe sentence-transformers can do.

Prefix prompts with a plain pooling or a table of embeddings, and layers after it
(SentenceTransformer), log(1 + relu) of a masked language model or a table of weights
(SparseEncoder), a vector a token (MultiVectorEncoder).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from embedlm.persistence.modules import leaves_prompt_out
from embedlm.prompt.filling import spell_demonstrations
from embedlm.prompt.special import surround
from embedlm.readout.pooling import kinds_of
from embedlm.readout.projection import Projection
from embedlm.schema.recipe import Dense, MultiVector, Recipe, Sparse
from embedlm.schema.template import parse_template

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Form", "Prefixes", "form_of", "is_expressible"]


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
    parsed = parse_template(template)
    if any(piece.kind == "image" for piece in parsed):
        return None
    pieces = [p for p in parsed if not p.when or values[p.when]]
    kinds = [piece.kind for piece in pieces]
    place = kinds.index("text")
    closing = kinds[place + 1 :]
    if closing not in ([], ["eos"]) or not {*kinds[:place]} <= {"literal", *values}:
        return None
    before = "".join(values.get(piece.kind, piece.value) for piece in pieces[:place])
    return before, bool(closing)


Kind = Literal["dense", "sparse", "multi_vector"]


@dataclass(frozen=True, slots=True)
class Form:
    """How sentence-transformers opens a model."""

    kind: Kind
    prefixes: Prefixes


def form_of(embedder: Embedder) -> Form | None:
    """Return the form in which the model can be opened with the same vectors; None: in none."""
    kind = _kind(embedder.recipe)
    prefixes = prefixes_of(embedder.recipe) if kind else None
    if kind is None or prefixes is None:
        return None
    renderer = embedder.renderer
    one_length = len({renderer.max_length(role) for role in (None, *renderer.roles())}) == 1
    if embedder.recipe.backbone.kind == "static":
        fits = one_length and not prefixes.eos
    elif kind == "dense":
        fits = one_length and _pools_alike(embedder, prefixes)
    elif kind == "sparse":
        fits = one_length and "MaskedLM" in type(embedder.backbone.head).__name__
    else:
        fits = _is_colbert(embedder)
    return Form(kind, prefixes) if fits else None


def is_expressible(recipe: Recipe) -> bool:
    """Tell whether sentence-transformers can do what the recipe does (with a fitting model).

    White space around a text is stripped by some recipes and not by sentence-transformers; that
    is no hindrance.
    """
    return _kind(recipe) is not None


def _kind(recipe: Recipe) -> Kind | None:
    if len(recipe.heads) != 1 or recipe.backbone.kind == "towers" or not _is_plain(recipe):
        return None
    if recipe.backbone.kind == "static":
        return _static_kind(recipe)
    (head,), over, kinds = recipe.heads, recipe.pooling.over, kinds_of(recipe.pooling.kind)
    if isinstance(head, Dense):
        whole = over == "all"
        counted = recipe.pooling.boundary in ("count_prefix", "count_instruction")
        part = over != "all" and set(over) in ({"text"}, {"text", "eos"}) and counted
        part = (part and "weighted_mean" not in kinds) or leaves_prompt_out(recipe)
        cut_alike = recipe.dim is None or not (recipe.normalize and recipe.renormalize)
        fits = recipe.prompt.expansion is None and (whole or part) and cut_alike
        return "dense" if fits else None
    if isinstance(head, Sparse):
        all_words = head.restrict == "none" and over == "all"
        reduced = head.reduce in ("max", "sum") or (head.reduce, kinds) == ("auto", ("max",))
        return "sparse" if head.weights == "lm_head" and all_words and reduced else None
    every = head.over == "all" and head.normalize
    lengths = recipe.prompt.max_length
    known = isinstance(lengths, dict) and {"query", "document"} <= set(lengths)
    return "multi_vector" if every and known else None


def _is_plain(recipe: Recipe) -> bool:
    """Tell whether what stands around the heads is no hindrance."""
    prompt, pooling = recipe.prompt, recipe.pooling
    return (
        prefixes_of(recipe) is not None
        and prompt.clean in ("none", "strip", "strip_all", "lower")
        and prompt.tokenize == "joined"
        and (prompt.special_tokens == "tokenizer" or recipe.backbone.kind == "static")
        and prompt.text_length is None
        and prompt.instruction_end == "keep"
        and not prompt.empty
        and prompt.truncate == "text"
        and (prompt.truncation_side == "right" or _cuts_alike(recipe))
        and pooling.layer == -1
        and not pooling.reads_statistics
        and not pooling.denoise
        and not pooling.exclude_sink
        and pooling.latent is None
        and recipe.transform is None
    )


def _static_kind(recipe: Recipe) -> Kind | None:
    """Tell whether a table is read as there: the mean of a text's own tokens, or their weights."""
    (head,), prompt, pooling = recipe.heads, recipe.prompt, recipe.pooling
    bare = prompt.special_tokens == "none" and pooling.over == "all"
    if isinstance(head, Sparse):
        whole = head.restrict == "none" and head.over in (None, "all")
        return "sparse" if head.weights == "static" and whole and bare else None
    prefixes = prefixes_of(recipe)
    alone = prefixes is not None and not any(prefixes.named.values())
    fits = (
        isinstance(head, Dense)
        and (bare or (pooling.over != "all" and set(pooling.over) == {"text"} and alone))
        and (pooling.kind, pooling.empty, pooling.skip) == ("mean", "zero", ())
        and not pooling.remove_components
        and not pooling.denoise
        and prompt.clean != "lower"
        and prompt.expansion is None
        and (recipe.dim is None or not (recipe.normalize and recipe.renormalize))
    )
    return "dense" if fits else None


def _cuts_alike(recipe: Recipe) -> bool:
    """Tell whether a tokenizer that cuts on the left leaves the tokens that the recipe reads."""
    return recipe.pooling.over == "all" and not isinstance(recipe.heads[0], MultiVector)


def _is_colbert(embedder: Embedder) -> bool:
    """Tell whether token vectors are made as ColBERT makes them: by a layer, or bare."""
    (head,), layers = embedder.recipe.heads, embedder.readout.parts.token_layers
    assert isinstance(head, MultiVector)
    expansion, lengths = embedder.recipe.prompt.expansion, embedder.recipe.prompt.max_length
    assert isinstance(lengths, dict)
    same = expansion is None or (expansion.role == "query" and expansion.length == lengths["query"])
    return same and layers is not None and isinstance(layers.vector, Projection)


def _pools_alike(embedder: Embedder, prefixes: Prefixes) -> bool:
    """Tell whether leaving the prompt out (include_prompt false) pools the recipe's tokens.

    sentence-transformers counts the prompt's tokens, with what the tokenizer puts before it, and
    pools all that follow; without a prompt it pools all.
    """
    over = embedder.recipe.pooling.over
    if over == "all" or leaves_prompt_out(embedder.recipe):
        return True
    before, after = surround(embedder.tokenizer)
    eos = embedder.tokenizer.eos_token_id
    closing = [*after, eos] if prefixes.eos and after[-1:] != [eos] else after
    wanted = [eos] if "eos" in over and prefixes.eos else []
    bare = prefixes.default is None or "" in prefixes.named.values()
    return closing == wanted and not (before and bare)
