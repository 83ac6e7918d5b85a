"""Pydantic's complaints as one line that names the field, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from embedlm.errors import EmbedLMError, RecipeError, closest

__all__ = ["set_path", "validated"]

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[int | str, ...]

_BRANCH = re.compile(r"^(str|int|float|bool|(tuple|list|dict|literal|constrained)\W.*)$")
"""Parts of a location that name a member of a union and not a field."""


def validated(cls: type[Model], data: Mapping[str, Any], where: str) -> Model:
    """Return the model that the data describes.

    Raises:
        RecipeError: names every field at fault; `where` says what was read.
    """
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        lines = _lines(cls, error.errors(include_url=False))
        raise RecipeError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from error


def _lines(cls: type[BaseModel], issues: Sequence[Any]) -> Iterator[str]:
    """Yield a line a field: of a union's branches, only those that came nearest to fitting."""
    fields: dict[Location, list[tuple[Location, Any]]] = {}
    for issue in issues:
        loc: Location = issue["loc"]
        branch = next((i for i, part in enumerate(loc) if _is_branch(part)), len(loc))
        place = tuple(part for part in loc if not _is_branch(part))
        fields.setdefault(loc[:branch], []).append((place, issue))
    for group in fields.values():
        depth = max(len(place) for place, _ in group)
        deepest = [(place, issue) for place, issue in group if len(place) == depth]
        yield _explain(cls, deepest[0][0], [issue for _, issue in deepest])


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and bool(_BRANCH.match(part))


def _explain(cls: type[BaseModel], place: Location, issues: Sequence[Any]) -> str:
    first = issues[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, EmbedLMError):
        return str(cause)
    path = ".".join(map(str, place)) or cls.__name__
    given = repr(first["input"])
    given = given if len(given) <= 80 else given[:77] + "..."
    if first["type"] == "extra_forbidden":
        allowed = _fields(cls, place[:-1])
        hint = closest(str(place[-1]), allowed)
        return f"{path}: unknown field (value {given}); allowed here: {', '.join(allowed)}.{hint}"
    messages = dict.fromkeys(issue["msg"].removeprefix("Value error, ") for issue in issues)
    message = " or ".join(messages).replace(" or Input should be", " or")
    message = message.replace("tuple", "list").replace("Tuple should", "the list should")
    return f"{path}: {message} (given {given})"


def _fields(cls: type[BaseModel], place: Location) -> list[str]:
    """Return the field names of the model that `place` leads to."""
    model = cls
    for part in place:
        field = model.model_fields.get(str(part))
        model = next(_models(field.annotation), model) if field else model
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at a dotted path; an entry of a list goes by kind, name or place.

    Raises:
        RecipeError: the path leads through something without fields.
    """
    *parents, last = path.split(".")
    node: Any = data
    for parent in parents:
        if isinstance(node, list):
            node = _entry(node, parent, path)
            continue
        child = node.get(parent)
        node[parent] = child = {} if child is None else child
        if not isinstance(child, dict | list):
            raise RecipeError(f"{path!r}: {parent!r} has no fields below it")
        node = child
    if isinstance(node, list):
        raise RecipeError(f"{path!r}: {last!r} is an entry of a list; give the whole list")
    node[last] = value


def _entry(entries: list[Any], key: str, path: str) -> dict[str, Any]:
    known: list[str] = []
    for place, entry in enumerate(entries):
        names = [str(place)]
        if isinstance(entry, dict):
            names += [str(entry[k]) for k in ("kind", "name") if k in entry]
            if key in names:
                return entry
        known.append(names[-1])
    raise RecipeError(
        f"{path!r}: no entry {key!r} with fields; there are: {', '.join(known) or 'none'}"
    )
