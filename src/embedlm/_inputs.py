"""What callers give, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedlm.errors import InputError

__all__ = ["Texts", "check_instructions", "check_texts", "translate_aliases"]


@dataclass(frozen=True, slots=True)
class Texts:
    """Checked texts."""

    items: list[str]
    single: bool
    """Whether one string was given, so that one vector is wanted."""


def check_texts(texts: Any) -> Texts:
    """Return the texts of a string, a mapping with `text`, or an iterable of these.

    Raises:
        InputError: something else, or a string that cannot be encoded as UTF-8.
    """
    if isinstance(texts, str | Mapping):
        return Texts([_text(texts, 0)], True)
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise InputError(
            f"texts is {type(texts).__name__}; give a string, or a list of strings or of "
            '{"text": ...}'
        )
    return Texts([_text(item, index) for index, item in enumerate(texts)], False)


def _text(item: Any, index: int) -> str:
    if isinstance(item, Mapping):
        if "text" not in item:
            raise InputError(f"item {index} is a mapping without the key 'text': {_short(item)}")
        item = item["text"]
    if not isinstance(item, str):
        raise InputError(
            f"item {index} is {type(item).__name__} ({_short(item)}), not a string; convert it "
            "or leave it out"
        )
    try:
        item.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"item {index} holds a lone surrogate at character {error.start} and cannot be "
            "encoded as UTF-8; clean it, e.g. text.encode('utf-8', 'replace').decode()"
        ) from error
    return str(item)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_instructions(instruction: Any, count: int) -> list[str] | None:
    """Return one instruction a text, or None for the recipe's own."""
    if instruction is None:
        return None
    if isinstance(instruction, str):
        return [instruction] * count
    given = list(instruction)
    if len(given) != count:
        raise InputError(
            f"{len(given)} instructions were given for {count} texts; give one, or one per text"
        )
    for index, one in enumerate(given):
        if not isinstance(one, str):
            raise InputError(f"instruction {index} is {type(one).__name__}, not a string")
    return given


def check_demonstrations(given: Any) -> tuple[dict[str, str], ...] | None:
    """Return demonstrations as mappings of strings; None for the recipe's own."""
    if given is None:
        return None
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise InputError(
            'demonstrations: give a list of {"instruct": ..., "query": ..., "response": ...}'
        )
    for index, shot in enumerate(given):
        if not isinstance(shot, Mapping) or not all(isinstance(v, str) for v in shot.values()):
            raise InputError(f"demonstration {index} is not a mapping of strings: {_short(shot)}")
    return tuple(dict(shot) for shot in given)


_ALIASES = {
    "show_progress_bar": "show_progress",
    "normalize_embeddings": "normalize",
    "prompt_name": "role",
    "truncate_dim": "dim",
}


def translate_aliases(options: dict[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    """Return the options with sentence-transformers' spellings replaced by ours.

    Raises:
        InputError: a name that is neither.
    """
    out: dict[str, Any] = {}
    for name, value in options.items():
        ours = _ALIASES.get(name, name)
        if ours not in allowed:
            from embedlm.errors import closest

            raise InputError(
                f"encode has no option {name!r}.{closest(name, list(allowed))} Allowed: "
                f"{', '.join(sorted(allowed))}"
            )
        if ours in out:
            raise InputError(f"the option {ours!r} was given twice, once as {name!r}")
        out[ours] = value
    return out
