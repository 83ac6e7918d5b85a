"""What callers may give to the functions of the package: one table, argument by argument.

`check_arguments("encode", role=5)` says what was given and what is allowed. Values that depend on a
model (its roles, its width) are checked where they are used; here it is their kind.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from embedlm.errors import EmbedLMError, InputError, clipped, closest
from embedlm.schema.base import SAVE_DTYPES

__all__ = ["check_arguments", "check_names", "is_text", "short", "usable_path"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: the words for it, and the test."""

    words: str
    fits: Callable[[Any], bool]
    others: tuple[str, ...] = ()
    """The words for the kinds that it is joined with."""

    def __or__(self, other: Kind) -> Kind:
        """Return the kind of what is one or the other."""
        others = (*self.others, other.words, *other.others)
        return Kind(self.words, lambda value: self.fits(value) or other.fits(value), others)

    @property
    def allowed(self) -> str:
        """The words for all that is allowed."""
        *first, last = dict.fromkeys((self.words, *self.others))
        return f"{', '.join(first)} or {last}" if first else last


def short(value: Any) -> str:
    """Return a value as an error message shows it."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr of the caller's that fails, or 10**5000
        text = f"a {type(value).__name__}"
    return clipped(text)


def is_text(value: Any) -> bool:
    """Tell whether a value is a string of whole characters, which UTF-8 can write."""
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _is_number(value: Any) -> bool:
    if not isinstance(value, Real) or _is_flag(value):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and is_text(os.fspath(value))


def _lists(value: Any, one: Kind) -> bool:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return False
    if hasattr(value, "ndim") and value.ndim == 0:
        return False
    # What can be read only once is checked where it is read.
    return not hasattr(value, "__len__") or all(one.fits(entry) for entry in value)


def _each(one: Kind, allowed: str) -> Kind:
    return Kind(allowed, lambda value: _lists(value, one))


def _mapping(key: Kind, value: Kind, allowed: str) -> Kind:
    return Kind(
        allowed,
        lambda given: (
            isinstance(given, Mapping)
            and all(key.fits(k) and value.fits(v) for k, v in given.items())
        ),
    )


ANY = Kind("anything", lambda _: True)
NONE = Kind("None", lambda value: value is None)
TEXT = Kind("a string", is_text)
NAME = Kind("a name", is_text)
COUNT = Kind("a number above 0 (1, 2, 3, ...)", _is_count)
FLAG = Kind("True or False", _is_flag)
NUMBER = Kind("a finite number", _is_number)
PATH = Kind("a path", _is_path)
HEAD = NAME | Kind("{name: options}", lambda value: isinstance(value, Mapping))
HEADS = HEAD | Kind("an object of options", lambda value: hasattr(value, "kind"))
DEVICE = NAME | Kind("a torch.device", lambda value: type(value).__name__ == "device")
DTYPE = NAME | Kind("a torch.dtype", lambda value: type(value).__name__ == "dtype")
ITERABLE = Kind(
    "an iterable of texts",
    lambda value: (
        isinstance(value, Iterable)
        and not isinstance(value, str | bytes | Mapping)
        and getattr(value, "ndim", 1) > 0
    ),
)
SAVE_DTYPE = Kind("float32, bfloat16, float16, int8", lambda value: value in SAVE_DTYPES)
WEIGHTS = _each(NUMBER, "a list of finite numbers")
SETTINGS = _mapping(NAME, ANY, "a mapping of names to values")
GENERATOR = (
    PATH
    | Kind("a function", callable)
    | Kind("an object with generate()", lambda value: hasattr(value, "generate"))
    | Kind("an Embedder", lambda value: hasattr(value, "backbone"))
)

ENCODE = {
    "role": NAME | NONE,
    "instruction": TEXT | _each(ANY, "a list with a string for each text") | NONE,
    "heads": HEADS | _each(HEADS, "a list of these") | NONE,
    "dim": COUNT | NONE,
    "precision": NAME | NONE,
    "normalize": FLAG | NONE,
    "batch_tokens": COUNT | NONE,
    "show_progress": FLAG | NONE,
    "max_length": COUNT | NONE,
    "adapter": NAME | NONE,
    "prompt": TEXT | NONE,
    "prompt_name": NAME | NONE,
    "show_progress_bar": FLAG | NONE,
    "normalize_embeddings": FLAG | NONE,
    "truncate_dim": COUNT | NONE,
    "convert_to_tensor": FLAG | NONE,
    "convert_to_numpy": FLAG | NONE,
    "batch_size": COUNT | NONE,
    "device": DEVICE | NONE,
}
LOAD = {
    "model": PATH | NONE,
    "device": DEVICE | NONE,
    "dtype": DTYPE,
    "adapters": _each(PATH, "a list of folders or hub ids") | NONE,
    "merge": FLAG | NONE,
    "max_length": COUNT | _mapping(NAME, COUNT, "a mapping of roles to such numbers") | NONE,
    "attn": NAME,
    "generator": GENERATOR | NONE,
    "lm_head": FLAG,
    "revision": NAME | NONE,
    "token": NAME | FLAG | NONE,
    "cache_dir": PATH | NONE,
    "model_kwargs": SETTINGS | NONE,
}
ARGUMENTS: dict[str, dict[str, Kind]] = {
    "encode": ENCODE,
    "stream": {"texts": ITERABLE},
    "load": LOAD,
    "similarity": {
        "heads": NAME | _each(NAME, "a list of names") | NONE,
        "weights": WEIGHTS | NONE,
    },
    "save_pretrained": {
        "folder": PATH,
        "save_dtype": SAVE_DTYPE | NONE,
        "license": NAME | NONE,
        "base_model": NAME | NONE,
        "scores": _mapping(TEXT, NUMBER, "a number for each task: {task: number, ...}"),
    },
    "prune": {
        "model": PATH,
        "output": PATH,
        "layers": COUNT | NONE,
        "vocabulary": COUNT | NONE,
        "intermediate": COUNT | NONE,
        "texts": ITERABLE,
    },
    "rerank": {
        "model": PATH,
        "query": TEXT,
        "instruction": TEXT | NONE,
        "probability": FLAG | NONE,
        "top_k": COUNT | NONE,
        "max_length": COUNT | NONE,
        "device": DEVICE | NONE,
        "dtype": DTYPE,
        "adapters": _each(PATH, "a list of folders or hub ids") | NONE,
    },
    "search": {
        "query": TEXT,
        "queries": _each(ANY, "a list of strings, or of what encode takes"),
        "top_k": COUNT,
        "instruction": TEXT | NONE,
        "mode": NAME | NONE,
        "fusion": NAME | NONE,
        "weights": _mapping(NAME, NUMBER, "a number for each ranking: {name: number, ...}") | NONE,
        "depth": COUNT | NONE,
        "rerank": Kind("an embedlm.Reranker", lambda value: hasattr(value, "rank")) | NONE,
        "rerank_depth": COUNT | NONE,
        "exact": FLAG,
        "sentences": FLAG,
        "vectors": SETTINGS | NONE,
    },
    "write": {
        "max_new_tokens": COUNT,
        "temperature": Kind("a finite number from 0", lambda x: _is_number(x) and x >= 0),
        "top_p": Kind("a number above 0, up to 1", lambda x: _is_number(x) and 0 < x <= 1),
    },
}
"""The kind of each argument, by call."""


def check_arguments(call: str, **given: Any) -> None:
    """Refuse values of a kind that a call does not take.

    Raises:
        InputError: names the argument, what was given and what is allowed.
    """
    for name, value in given.items():
        kind = ARGUMENTS[call][name]
        if not kind.fits(value):
            broken = isinstance(value, str) and not is_text(value)
            note = ", which holds a lone surrogate (clean it)" if broken else ""
            raise InputError(f"{name} is {short(value)}{note}; give {kind.allowed}")


def check_names(call: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse names that a call does not know.

    Raises:
        InputError: names the first of them and lists those that are allowed.
    """
    known = list(allowed)
    for name in names:
        if name not in known:
            raise InputError(
                f"{call} has no option {name!r}.{closest(name, known)} Allowed: {', '.join(known)}"
            )


def usable_path(path: Any, error: type[EmbedLMError] = InputError) -> Path:
    """Return a path that the system can look for, whether or not something is there.

    Raises:
        InputError: or `error`; a path with a NUL, or longer than the system allows.
    """
    found = Path(path)
    try:
        found.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as reason:
        said = getattr(reason, "strerror", None) or str(reason)
        raise error(f"the path {short(str(path))} cannot be used: {said}; give another") from reason
    return found
