"""Everything EmbedLM raises on purpose, as one tree.

    EmbedLMError
    ├── RecipeError          a recipe that cannot be: unknown name or field, wrong value
    │   └── TemplateError    a prompt template that cannot be rendered
    ├── InputError           what the caller gave cannot be embedded: type, shape, option
    │   └── RecordError      a record of a file, with its file and line
    ├── ModelError           a folder or hub id that cannot be loaded as a model
    │   └── UnsupportedError the model is fine, but cannot do what the recipe asks of it
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
    "RecipeError",
    "RecordError",
    "TemplateError",
    "UnsupportedError",
    "closest",
    "require",
]


class EmbedLMError(Exception):
    """Base of every error that EmbedLM raises on purpose."""


class RecipeError(EmbedLMError, ValueError):
    """A recipe that cannot be: unknown name or field, or a value that is not allowed."""


class TemplateError(RecipeError):
    """A prompt template that cannot be rendered."""


class InputError(EmbedLMError, ValueError):
    """What the caller gave cannot be embedded."""


class RecordError(InputError):
    """A record of an input file that cannot be read; the message holds file and line."""


class ModelError(EmbedLMError, OSError):
    """A folder or hub id that cannot be loaded as a model."""


class UnsupportedError(ModelError):
    """The model is fine, but it cannot do what the recipe asks of it."""


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


def closest(given: str, allowed: list[str]) -> str:
    """Return a hint naming the nearest allowed word, or an empty string."""
    from difflib import get_close_matches

    found = get_close_matches(given, allowed, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
