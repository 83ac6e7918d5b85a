"""The options of one call of `encode`, under our names and sentence-transformers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

from embedlm.errors import InputError, closest

__all__ = ["AUTO", "PRECISIONS", "Options"]

AUTO = "auto"
"""The adapter that the recipe gives the role."""
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one call of `encode` asks for; see there."""

    role: str | None = None
    instruction: str | Sequence[str] | None = None
    demonstrations: tuple[dict[str, str], ...] | None = None
    heads: Any = None
    dim: int | None = None
    precision: str = "float32"
    normalize: bool | None = None
    batch_tokens: int | None = None
    show_progress: bool | None = None
    max_length: int | None = None
    adapter: str | None = AUTO
    lead: str | None = None
    """Written before each text in place of the recipe's prompt (sentence-transformers' `prompt`);
    "" leaves the text bare."""
    as_tensor: bool = False
    cut_last: bool = False
    """Shorten vectors after the recipe's normalising (sentence-transformers' `truncate_dim`)."""

    @classmethod
    def of(cls, spellings: Mapping[str, Any], **named: Any) -> Options:
        """Return the options of a call; sentence-transformers' spellings win over ours.

        Raises:
            InputError: a name that neither knows, or a value that is not allowed.
        """
        options = {**named, **_translated(spellings)}
        if options.get("precision") is None:
            options["precision"] = "float32"
        return cls(**options)

    def __post_init__(self) -> None:
        for name in ("dim", "batch_tokens", "max_length"):
            value = getattr(self, name)
            if value is not None and (not _is_count(value)):
                raise InputError(f"{name} is {value!r}; give a number above 0")
        if self.precision not in PRECISIONS:
            raise InputError(
                f"precision {self.precision!r} is not known; allowed: {', '.join(PRECISIONS)}."
                + closest(self.precision, list(PRECISIONS))
            )


def _is_count(value: Any) -> bool:
    """Tell whether a value is a whole number above 0."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


_OF_SPELLINGS = ("lead", "as_tensor", "cut_last")
"""Options that only a spelling sets."""
_SPELLINGS = {
    "prompt": "lead",
    "convert_to_tensor": "as_tensor",
    "show_progress_bar": "show_progress",
    "normalize_embeddings": "normalize",
    "prompt_name": "role",
    "truncate_dim": "dim",
}
_WITHOUT_EFFECT = ("batch_size", "convert_to_numpy", "device")


def _translated(spellings: Mapping[str, Any]) -> dict[str, Any]:
    """Return sentence-transformers' options under our names, without those that are None."""
    allowed = [field.name for field in fields(Options) if field.name not in _OF_SPELLINGS]
    options: dict[str, Any] = {}
    for name, value in spellings.items():
        if name in _WITHOUT_EFFECT or value is None:
            continue
        if name == "normalize_embeddings" and value is False:
            continue  # there it means: no further normalising than the model's own
        if name not in _SPELLINGS:
            raise InputError(
                f"encode has no option {name!r}.{closest(name, allowed)} Allowed: "
                f"{', '.join(allowed)}"
            )
        options[_SPELLINGS[name]] = value
        if name == "truncate_dim":
            options["cut_last"] = True
    return options
