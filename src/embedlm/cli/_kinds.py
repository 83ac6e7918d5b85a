"""Kinds of options: what their values may be, refused before a command begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cyclopts import Parameter

__all__ = ["flag", "natural", "number", "path", "paths", "repeated", "whole"]


def flag(text: str, name: str | None = None) -> Parameter:
    """Return a switch without a --no- form."""
    return Parameter(name=name, negative=(), show_default=False, help=text)


def repeated(text: str, name: Any = None, metavar: str | None = None, **more: Any) -> Parameter:
    """Return an option that may be given several times."""
    help = f"{text} (repeat)."
    return Parameter(name=name, negative=(), show_default=False, metavar=metavar, help=help, **more)


def whole(text: str, name: Any = None) -> Parameter:
    """Return an option that takes a whole number above 0."""
    return Parameter(name=name, metavar="N", help=text, converter=_whole)


def natural(text: str, name: Any = None) -> Parameter:
    """Return an option that takes a whole number of 0 or more, such as a seed."""
    return Parameter(name=name, metavar="N", help=text, converter=_natural)


def number(text: str, metavar: str = "X") -> Parameter:
    """Return an option that takes a finite number of 0 or more."""
    return Parameter(metavar=metavar, help=text, converter=_number)


def path(text: str, name: Any = None, metavar: str | None = "FILE", **more: Any) -> Parameter:
    """Return an argument or option that names a file, a folder or a model, and is not empty."""
    return Parameter(name=name, metavar=metavar, help=text, converter=_path, **more)


_MOST = (1 << 31) - 1


def _whole(_: Any, tokens: Sequence[Any]) -> int:
    return _integer(tokens[0].value, 1, "above 0")


def _natural(_: Any, tokens: Sequence[Any]) -> int:
    return _integer(tokens[0].value, 0, "of 0 or more")


def _integer(text: str, least: int, allowed: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < least:
        raise ValueError(f"{text!r} is not allowed; give a whole number {allowed}")
    if value > _MOST:
        raise ValueError(f"{text!r} is too large; give {_MOST:,} at most")
    return value


def _number(_: Any, tokens: Sequence[Any]) -> float:
    text = tokens[0].value
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r} is not allowed; give a number of 0 or more")
    return value


def _path(_: Any, tokens: Sequence[Any]) -> str:
    return paths(_, tokens)[0]


def paths(_: Any, tokens: Sequence[Any]) -> tuple[str, ...]:
    from embedlm.jobs.names import check_name

    names = tuple(str(token.value) for token in tokens)
    for name in names:
        if name != "-":
            check_name(name)
    return names
