"""How one key of a layout's JSON file is read into a recipe, and written from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embedlm.errors import UnsupportedError, closest
from embedlm.schema.arguments import is_text, short
from embedlm.schema.recipe import Recipe

__all__ = [
    "ANYTHING",
    "COUNT",
    "FLAG",
    "FROM_ZERO",
    "NOTHING",
    "SHARE",
    "TEXT",
    "TEXTS",
    "Draft",
    "Outline",
    "Setting",
    "Values",
    "keep",
    "one_of",
    "read_settings",
    "write_settings",
]


@dataclass(slots=True)
class Draft:
    """What the files of a folder have said so far."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the recipe, by dotted path."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Values that only mean something together with others, by key."""
    stages: list[str] = field(default_factory=list)
    """Kinds of the modules that were read, in order."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What a folder is written from: the recipe, and what the network adds to it."""

    recipe: Recipe
    prompts: Mapping[str, str] = field(default_factory=dict)
    """The prefix of each role."""
    default_prompt: str | None = None
    """The name of the prompt that is taken where a call names none."""
    width: int = 0
    """Of a token state."""
    vocabulary: int = 0
    max_length: int | None = None
    """In tokens; None: the network's own limit."""


@dataclass(frozen=True, slots=True)
class Values:
    """Which values a key may have."""

    told: str
    fit: Callable[[Any], bool]


ANYTHING = Values("anything", lambda value: True)
NOTHING = Values("no value at all", lambda value: False)
FLAG = Values("true or false", lambda value: isinstance(value, bool))
TEXT = Values("a string", is_text)
COUNT = Values(
    "a whole number above 0",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
)
FROM_ZERO = Values(
    "a whole number from 0",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
)
SHARE = Values(
    "a number from 0 to 1",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
)
TEXTS = Values(
    "a list of strings",
    lambda value: isinstance(value, list) and all(map(is_text, value)),
)


def one_of(*values: Any) -> Values:
    """Return the rule that a value is one of these."""
    return Values(
        ", ".join(map(repr, values)),
        lambda value: any(value == one and type(value) is type(one) for one in values),
    )


def _ignore(draft: Draft, value: Any) -> None:
    """Read nothing: the key has no effect on vectors."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a JSON file. A missing key leaves everything as it is."""

    key: str
    values: Values = ANYTHING
    """A value that is none of these is refused."""
    read: Callable[[Draft, Any], None] = _ignore
    """Puts the value into the draft."""
    write: Callable[[Outline], Any] | None = None
    """Returns the value for a recipe; None: the key is not written."""
    null: Literal["refused", "missing", "value"] = "refused"
    """What null is: no value of the key, as good as a missing key, or a value like others."""


def keep(key: str) -> Callable[[Draft, Any], None]:
    """Return a reader that keeps the value until all files are read."""
    return lambda draft, value: draft.facts.update({key: value})


def read_settings(
    draft: Draft,
    file: Path,
    content: Mapping[str, Any],
    settings: tuple[Setting, ...],
    advice: str = "Give recipe= to say how the model is read",
) -> None:
    """Read every key of a file.

    Args:
        draft: takes what the keys say.
        file: that is read, for messages.
        content: of the file.
        settings: the keys that are known.
        advice: what to do about a key or a value that is refused.

    Raises:
        UnsupportedError: a key that is not known, or a value that cannot be honoured.
    """
    known = {setting.key: setting for setting in settings}
    for key, value in content.items():
        if key not in known:
            raise UnsupportedError(
                f"{file}: the key {key!r} (value {short(value)}) is not known, and it may change "
                f"vectors; known: {', '.join(known)}.{closest(key, list(known))} {advice}"
            )
        setting = known[key]
        fits = setting.null != "refused" if value is None else setting.values.fit(value)
        if not fits:
            raise UnsupportedError(
                f"{file}: {key} is {short(value)}; EmbedLM can honour {setting.values.told}. "
                f"{advice}"
            )
    for setting in settings:  # in the order of the table, whatever the file's order is
        value = content.get(setting.key)
        if value is not None or (setting.null == "value" and setting.key in content):
            setting.read(draft, value)


def write_settings(outline: Outline, settings: tuple[Setting, ...]) -> dict[str, Any]:
    """Return the content of a file for a recipe."""
    found = {one.key: one.write(outline) for one in settings if one.write is not None}
    return {key: value for key, value in found.items() if value is not None or key in _NULLS}


_NULLS = ("default_prompt_name", "max_seq_length")
"""Keys that sentence-transformers writes where they have no value."""
