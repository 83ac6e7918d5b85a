"""All errors that EmbedLM raises on purpose, as one tree.

    EmbedLMError
    ├── RecipeError          an invalid recipe: unknown name or field, or a wrong value
    │   └── TemplateError    a prompt template that cannot be rendered
    ├── InputError           a value, option or file that cannot be used
    │   └── RecordError      a record of a file, with its file and line
    ├── ModelError           a folder or hub id that cannot be loaded as a model
    │   ├── UnsupportedError a valid model that cannot do what the recipe says
    │   └── NotFiniteError   a model that gave NaN or infinity
    ├── JobError             a long job that cannot start, continue or finish
    ├── GenerationError      a text generator (local or behind an endpoint) that failed
    └── MissingExtraError    an optional dependency is not installed; holds the pip line

Each message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "EmbedLMError",
    "GenerationError",
    "InputError",
    "JobError",
    "MissingExtraError",
    "ModelError",
    "NotFiniteError",
    "RecipeError",
    "RecordError",
    "TemplateError",
    "UnsupportedError",
    "clipped",
    "closest",
    "require",
]


class EmbedLMError(Exception):
    """Base of every error that EmbedLM raises on purpose."""


class RecipeError(EmbedLMError, ValueError):
    """An invalid recipe: an unknown name or field, or a value that is not allowed."""


class TemplateError(RecipeError):
    """A prompt template that cannot be rendered."""


class InputError(EmbedLMError, ValueError):
    """A value, option or file of the caller cannot be used."""


class RecordError(InputError):
    """A record of an input file that cannot be read; the message holds file and line."""


class ModelError(EmbedLMError, OSError):
    """A folder or hub id that cannot be loaded as a model."""


class UnsupportedError(ModelError):
    """A valid model that cannot do what the recipe says."""


class NotFiniteError(ModelError):
    """A model gave NaN or infinity for some texts."""

    rows: tuple[int, ...] = ()
    """Those texts, by their place in the call."""


class JobError(EmbedLMError, RuntimeError):
    """A long job that cannot start, continue or finish."""


class GenerationError(EmbedLMError, RuntimeError):
    """A text generator that failed."""


class MissingExtraError(EmbedLMError, ImportError):
    """An optional dependency is not installed."""


def require(module: str, extra: str) -> Any:
    """Import an optional module, or say which extra brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed for this and is not installed. "
            f'Install it with: pip install "embedlm[{extra}]"'
        ) from error


def clipped(text: str, longest: int = 60) -> str:
    """Return a text as a message or a table shows it: of no more than so many characters."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def closest(word: str, allowed: list[str]) -> str:
    """Return a hint naming the nearest allowed word; an empty string where none is alike."""
    from difflib import get_close_matches

    near = get_close_matches(word, allowed)
    matches = get_close_matches(word, near, n=1, cutoff=0.7)
    matches = matches or [one for one in near if one.startswith(word) or _one_slip(word, one)]
    return f" Did you mean {matches[0]!r}?" if matches else ""


def _one_slip(word: str, other: str) -> bool:
    """Tell whether two words differ by one letter put for another, or by their order alone."""
    if len(word) != len(other):
        return False
    return sum(map(str.__ne__, word, other)) == 1 or sorted(word) == sorted(other)
