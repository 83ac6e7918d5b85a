"""What every schema shares: the base class, names, dotted paths and one-line error messages.

A message of pydantic is told in one line that names the field, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from embedlm.errors import EmbedLMError, RecipeError, clipped, closest

__all__ = ["SAVE_DTYPES", "Name", "Part", "SaveDtype", "set_path", "validated"]


class Part(BaseModel):
    """A frozen group of fields; one that it does not know is an error, and so are NaN and inf."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _plain_name(value: str) -> str:
    """Refuse a name that would lead out of the folder in which something is called by it."""
    if not 0 < len(value) <= 200 or value.startswith(".") or not value.isprintable():
        raise ValueError(
            "a name has 1 to 200 printable characters and does not begin with a full stop"
        )
    if set(value) & set("/\\"):
        raise ValueError("a name is not a path: leave out slashes and backslashes")
    return value


Name = Annotated[str, AfterValidator(_plain_name)]
"""What a recipe, a plan or a stage is called; files and folders are named after it."""

SaveDtype = Literal["float32", "bfloat16", "float16", "int8"]
SAVE_DTYPES: tuple[str, ...] = get_args(SaveDtype)
"""The numbers in which a network's weights can be stored; int8: its matrices, by row."""

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[int | str, ...]

_BRANCH = re.compile(r"^(str|int|float|bool|(tuple|list|dict|literal|constrained)\W.*)$")
"""Parts of a location that name a member of a union and not a field."""


def validated(cls: type[Model], data: Mapping[str, Any], where: str) -> Model:
    """Return the model that the data describe.

    Args:
        cls: which model.
        data: its fields.
        where: the file or name that begins the error message.

    Raises:
        RecipeError: names every wrong field.
    """
    path = _broken_text(data)
    if path is not None:
        raise RecipeError(f"{where}: {path} holds a lone surrogate, which UTF-8 cannot write")
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        lines = _lines(cls, error.errors(include_url=False))
        raise RecipeError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from error


def _broken_text(value: Any, path: str = "") -> str | None:
    """Return the path of a string that UTF-8 cannot write; None where there is none."""
    if isinstance(value, str):
        return path if any("\ud800" <= sign <= "\udfff" for sign in value) else None
    inner: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        inner = iter(value.items())
    elif isinstance(value, list | tuple):
        inner = iter(enumerate(value))
    found = (_broken_text(one, f"{path}.{key}" if path else str(key)) for key, one in inner)
    return next((one for one in found if one is not None), None)


def _lines(cls: type[BaseModel], issues: Sequence[Any]) -> Iterator[str]:
    """Yield one line per field.

    Of a union's branches, only those that came nearest to fitting are told.
    """
    fields: dict[Location, list[tuple[Location, Any]]] = {}
    for issue in issues:
        loc: Location = issue["loc"]
        if issue["type"] == "too_short" and any(_is_below(one["loc"], loc) for one in issues):
            continue  # entries that are wrong are not counted
        branch = next((i for i, part in enumerate(loc) if _is_branch(part)), len(loc))
        path = tuple(part for part in loc if not _is_branch(part))
        fields.setdefault(loc[:branch], []).append((path, issue))
    for group in fields.values():
        depth = max(len(path) for path, _ in group)
        deepest = [(path, issue) for path, issue in group if len(path) == depth]
        yield _explain(cls, deepest[0][0], [issue for _, issue in deepest])


def _is_below(inner: Location, outer: Location) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and bool(_BRANCH.match(part))


def _explain(cls: type[BaseModel], location: Location, issues: Sequence[Any]) -> str:
    first = issues[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, EmbedLMError):
        return str(cause)
    path = ".".join(map(str, location)) or cls.__name__
    value = clipped(repr(first["input"]), 80)
    if first["type"] == "extra_forbidden":
        allowed = _fields(cls, location[:-1])
        hint = closest(str(location[-1]), allowed)
        return f"{path}: unknown field (value {value}); allowed here: {', '.join(allowed)}.{hint}"
    messages = dict.fromkeys(issue["msg"].removeprefix("Value error, ") for issue in issues)
    message = " or ".join(messages).replace(" or Input should be", " or")
    message = message.replace("tuple", "list").replace("Tuple should", "the list should")
    return f"{path}: {message} (given {value}){_nearest(first['input'], issues)}"


def _nearest(given: Any, issues: Sequence[Any]) -> str:
    """Return a hint at the allowed word that is nearest to what was given, if any is."""
    expected = " ".join(str(issue.get("ctx", {}).get("expected", "")) for issue in issues)
    hint = closest(given, re.findall("'([^']+)'", expected)) if isinstance(given, str) else ""
    return hint and f".{hint}"


def _fields(cls: type[BaseModel], location: Location) -> list[str]:
    """Return the field names of the model at a location."""
    model = cls
    for part in location:
        field = model.model_fields.get(str(part))
        model = next(_models(field.annotation), model) if field else model
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the field at a dotted path.

    An entry of a list is named by its kind, its name or its index.

    Raises:
        RecipeError: the path goes through a value that has no fields.
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
    for index, entry in enumerate(entries):
        names = [str(index)]
        if isinstance(entry, dict):
            names += [str(entry[k]) for k in ("kind", "name") if k in entry]
            if key in names:
                return entry
        known.append(names[-1])
    raise RecipeError(
        f"{path!r}: no entry {key!r} with fields; there are: {', '.join(known) or 'none'}"
    )
