"""Fields of a recipe that nothing reads, because another field says otherwise.

One that somebody gives is refused. One that a recipe holds already is not: whoever changes a line
of a recipe need not clear what the old line was read with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from embedlm.errors import RecipeError
from embedlm.schema.heads import Sparse
from embedlm.schema.prompt import Message, Prompt, Template
from embedlm.schema.template import parse_template

if TYPE_CHECKING:
    from embedlm.schema.recipe import Recipe

__all__ = ["check_given", "given_paths", "without_effect"]

_WEIGHED = {"mean", "mean_sqrt_length"}
"""Poolings that weigh tokens by how common they are."""


def _kinds(recipe: Recipe) -> set[str]:
    kind = recipe.pooling.kind
    return {kind} if isinstance(kind, str) else {*kind}


def _slots(prompt: Prompt) -> set[str]:
    """Return the slots of all templates."""
    given = (prompt.default, prompt.query, prompt.document, *prompt.roles.values())
    found: set[str] = set()
    for template in given:
        for one in _parts(template):
            pieces = parse_template(one)
            found |= {piece.kind for piece in pieces} | {piece.when for piece in pieces}
    return found


def _parts(template: Template | None) -> list[str]:
    """Return what a template is parsed as; the turns of a chat are one."""
    if template is None or isinstance(template, str):
        return [template or "{text}"]
    turns = [part.content for part in template if isinstance(part, Message)]
    return ["".join(turns)] if turns else [str(part) for part in template]


def _reads_segments(recipe: Recipe) -> bool:
    overs = [recipe.pooling.over, *(getattr(head, "over", None) for head in recipe.heads)]
    return any(over not in ("all", None) for over in overs)


def _by_words(recipe: Recipe) -> bool:
    return any(isinstance(head, Sparse) and head.restrict == "text" for head in recipe.heads)


_Reads = Callable[["Recipe"], bool]
_WITH_WORDS: tuple[_Reads, str] = (_by_words, "it is read with heads.sparse.restrict: text alone")
_WITH_LAYERS: tuple[_Reads, str] = (
    lambda recipe: recipe.backbone.kind != "static",
    "backbone.kind: static has no layers that attend",
)
_WITH_EXAMPLES: tuple[_Reads, str] = (
    lambda recipe: "demonstrations" in _slots(recipe.prompt),
    "no template has {demonstrations}",
)
_WITH_TASK: tuple[_Reads, str] = (
    lambda recipe: "instruction" in _slots(recipe.prompt),
    "no template has {instruction}",
)
_READ: dict[str, tuple[_Reads, str]] = {
    "backbone.attention": _WITH_LAYERS,
    "backbone.sliding_window": _WITH_LAYERS,
    "prompt.instruction": _WITH_TASK,
    "prompt.instruction_end": _WITH_TASK,
    "prompt.demonstration": _WITH_EXAMPLES,
    "prompt.demonstrations": _WITH_EXAMPLES,
    "prompt.separator": _WITH_EXAMPLES,
    "pooling.boundary": (
        lambda recipe: recipe.pooling.boundary == "count_prompt" or _reads_segments(recipe),
        "it says where a segment begins, and the pooling takes all (pooling.over)",
    ),
    "pooling.weights": (
        lambda recipe: bool(_kinds(recipe) & _WEIGHED),
        f"it weighs the tokens of pooling.kind {' and '.join(sorted(_WEIGHED))} alone",
    ),
    "pooling.sif_a": (
        lambda recipe: recipe.pooling.weights == "sif",
        "it is SIF's, with pooling.weights: sif",
    ),
    "heads.sparse.stop_words": _WITH_WORDS,
    "heads.sparse.fallback_top_k": _WITH_WORDS,
}
"""When each field is read, and why it is not; the others always are, or are checked themselves."""


def given_paths(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all values of nested mappings."""
    for key, value in data.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from given_paths(value, path)
        else:
            yield path


def check_given(recipe: Recipe, given: Iterable[str], where: str) -> None:
    """Refuse fields that were given and that nothing reads.

    Args:
        recipe: whole.
        given: paths of what was given; one of a part stands for all of it.
        where: the file or name that begins the error message.

    Raises:
        RecipeError: names the first such field and says why nothing reads it.
    """
    paths = list(given)
    for field, (reads, reason) in _READ.items():
        if not any(_covers(path, field) for path in paths):
            continue
        value, default = _value(recipe, field)
        if value and value != default and not reads(recipe):
            raise RecipeError(
                f"{where}: {field} is {value!r} and has no effect: {reason}; leave it out (its "
                f"default is {default!r}), or change the other"
            )


def without_effect(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that nothing reads, with their defaults, for `Recipe.override`.

    Among them are those that nothing reads any more once the others have their defaults.
    """
    found: dict[str, Any] = {}
    while more := _unread(recipe):
        found |= more
        recipe = recipe.override(more)
    return found


def _unread(recipe: Recipe) -> dict[str, Any]:
    values = {field: _value(recipe, field) for field in _READ}
    return {
        field: default
        for field, (value, default) in values.items()
        if value != default and not _READ[field][0](recipe)
    }


def _covers(path: str, field: str) -> bool:
    """Tell whether a path is that of a field or of a part around it, by whatever name of a head."""
    if path.startswith("heads.") and field.startswith("heads."):
        return path.rpartition(".")[2] == field.rpartition(".")[2]
    return field == path or field.startswith(f"{path}.")


def _value(recipe: Recipe, field: str) -> tuple[Any, Any]:
    """Return the value of a field, and its default; the same twice where there is no such head."""
    part: Any = recipe
    *parents, last = field.split(".")
    for name in parents:
        if isinstance(part, tuple):
            part = next((head for head in part if head.kind == name), None)
        else:
            part = getattr(part, name)
    if part is None:
        return None, None
    return getattr(part, last), type(part).model_fields[last].get_default(call_default_factory=True)
