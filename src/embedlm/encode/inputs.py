"""What callers give, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from embedlm.encode.items import Part, Pictured, Text, TokenIds
from embedlm.errors import InputError
from embedlm.schema.arguments import check_arguments, short
from embedlm.vision.picture import is_image, picture_of

__all__ = [
    "CheckedTexts",
    "check_demonstrations",
    "check_instructions",
    "check_lead",
    "check_texts",
]


@dataclass(frozen=True, slots=True)
class CheckedTexts:
    """The texts of a call, checked."""

    parts: list[Part]
    single: bool
    """Whether one string was given, so that one vector is asked for."""

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def texts(self) -> list[str]:
        """The strings, without images and rows of token ids."""
        return [part.text for part in self.parts if isinstance(part, Text)]


def check_texts(texts: Any, *, all_kinds: bool = False) -> CheckedTexts:
    """Return the texts of a string, a mapping with `text`, or an iterable of these.

    Args:
        texts: what was given.
        all_kinds: whether images, and rows of token ids, may stand in the texts' place.

    Raises:
        InputError: something else, a string that cannot be encoded as UTF-8, or an image that
            cannot be read.
    """
    if isinstance(texts, str | Mapping) or is_image(texts):
        return CheckedTexts([_part(texts, 0, images=all_kinds)], True)
    if isinstance(texts, Set) or hasattr(texts, "columns"):
        kind = "a set, which has no order" if isinstance(texts, Set) else "a table"
        raise InputError(f"texts is {kind}; give a list of strings, or one column of a table")
    one = getattr(texts, "ndim", 1) == 0  # an array without rows cannot be iterated
    if isinstance(texts, bytes) or one or not isinstance(texts, Iterable):
        raise InputError(
            f"texts is {type(texts).__name__} ({short(texts)}); give a string, or a list of "
            'strings or of {"text": ...}'
        )
    items = list(texts.to_pylist() if hasattr(texts, "to_pylist") else texts)  # arrow's are wrapped
    if all_kinds and items and _begins_with_id(items[0]):
        return CheckedTexts(
            [TokenIds(_ids(item, index)) for index, item in enumerate(items)], False
        )
    parts = [_part(item, index, images=all_kinds) for index, item in enumerate(items)]
    return CheckedTexts(parts, False)


def _part(item: Any, index: int, *, images: bool) -> Part:
    """Return what is made of one text, mapping or image."""
    if isinstance(item, Text) or (images and isinstance(item, Pictured)):
        return item
    image = item if is_image(item) else None
    if isinstance(item, Mapping):
        image = item.get("image")
        other = next((name for name in ("audio", "video") if item.get(name) is not None), None)
        if other is not None:
            raise InputError(f"item {index} has {other}, which no model here reads; leave it out")
    if image is None:
        return Text(_text(item, index))
    if not images:
        raise InputError(
            f"item {index} is an image, or has one, and this takes texts alone; give its text"
        )
    text = item.get("text") if isinstance(item, Mapping) else None
    beside = "" if text is None else _text(text, index)
    return Pictured(beside, picture_of(image, f"item {index}"))


def _begins_with_id(item: Any) -> bool:
    """Tell whether something is a row of token ids, by its first entry."""
    if isinstance(item, str | bytes | Mapping) or not _has_entries(item):
        return False
    first = next(iter(item), None)
    return isinstance(first, Integral) and not isinstance(first, bool)


def _has_entries(item: Any) -> bool:
    return isinstance(item, Iterable) and getattr(item, "ndim", 1) > 0


def _ids(item: Any, index: int) -> tuple[int, ...]:
    if isinstance(item, str | bytes | Mapping) or not _has_entries(item):
        raise InputError(
            f"item {index} is {type(item).__name__}, and the first one is a row of token ids; give "
            "texts or ids, not both"
        )
    row = tuple(item)
    for one in row:
        if isinstance(one, bool) or not isinstance(one, Integral):
            raise InputError(f"item {index} holds {short(one)}, which is no token id")
    if not row:
        raise InputError(f"item {index} holds no token id; leave it out")
    return tuple(int(one) for one in row)


def check_lead(lead: str | None, parts: Sequence[Part]) -> str | None:
    """Return what is written before each text; None: the recipe's prompt.

    Raises:
        InputError: there are token ids among the parts, or images, of which it would say nothing.
    """
    if lead is not None and any(isinstance(part, TokenIds) for part in parts):
        raise InputError("token ids are run as they are; a prompt cannot be written before them")
    if lead and any(isinstance(part, Pictured) for part in parts):
        raise InputError(
            "a prompt of the call's own is written before texts alone, and an image was given; "
            "leave the prompt out, or take a role or an instruction of the recipe"
        )
    return lead


def _text(item: Any, index: int) -> str:
    if isinstance(item, Mapping):
        if "text" not in item:
            raise InputError(f"item {index} is a mapping without the key 'text': {short(item)}")
        item = item["text"]
    if not isinstance(item, str):
        raise InputError(
            f"item {index} is {type(item).__name__} ({short(item)}), not a string; convert it "
            "or leave it out"
        )
    return _whole(str(item), f"item {index}")


def _whole(text: str, what: str) -> str:
    """Return a text that UTF-8 can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate at character {error.start} and cannot be encoded as "
            "UTF-8; clean it, e.g. text.encode('utf-8', 'replace').decode()"
        ) from error
    return text


def check_instructions(instruction: Any, count: int) -> list[str] | None:
    """Return one instruction a text, or None for the recipe's own."""
    if instruction is None:
        return None
    if isinstance(instruction, str):
        return [_whole(instruction, "instruction")] * count
    check_arguments("encode", instruction=instruction)
    instructions = list(instruction)
    if len(instructions) != count:
        raise InputError(
            f"{len(instructions)} instructions were given for {count} texts; give one, or one "
            "for each text"
        )
    for index, one in enumerate(instructions):
        if not isinstance(one, str):
            raise InputError(f"instruction {index} is {type(one).__name__}, not a string")
        _whole(one, f"instruction {index}")
    return instructions


def check_demonstrations(demonstrations: Any) -> tuple[dict[str, str], ...] | None:
    """Return demonstrations as mappings of strings; None for the recipe's own."""
    if demonstrations is None:
        return None
    if isinstance(demonstrations, str | Mapping) or not isinstance(demonstrations, Sequence):
        raise InputError(
            'demonstrations: give a list of {"instruct": ..., "query": ..., "response": ...}'
        )
    for index, shot in enumerate(demonstrations):
        if not isinstance(shot, Mapping) or not all(isinstance(v, str) for v in shot.values()):
            raise InputError(f"demonstration {index} is not a mapping of strings: {short(shot)}")
        for value in shot.values():
            _whole(value, f"demonstration {index}")
    return tuple(dict(shot) for shot in demonstrations)
