"""One small language of metadata filters, for every store.

    {"type": "eq", "key": "lang", "value": "en"}         eq ne gt gte lt lte in nin
    {"type": "and", "filters": [...]}                    and or

It is the form of OpenAI's vector stores. `parse_filter` also reads `lang=en`, `year>=2020`,
`lang!=en` and `lang in en,de`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embedlm.data.rows import lone_surrogate
from embedlm.errors import InputError, closest
from embedlm.schema.arguments import short

__all__ = [
    "Filter",
    "check_filter",
    "field_name",
    "fits",
    "flat",
    "kept_value",
    "parse_filter",
    "qdrant_filter",
]

Filter = Mapping[str, Any]
"""A checked filter, see above."""

_WHOLE = 2**53
"""From it on float64 does not tell all whole numbers apart, such as two ids of 64 bits."""
_ORDER = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}
_COMPARISONS = ("eq", "ne", *_ORDER, "in", "nin")
_JOINS = ("and", "or")
_SIGNS = {"!=": "ne", ">=": "gte", "<=": "lte", "=": "eq", ">": "gt", "<": "lt"}
_WRITTEN = re.compile(r"\s*(?P<key>[^=<>!]+?)\s*(?P<sign>!=|>=|<=|=|>|<)\s*(?P<value>.*)", re.S)
_MEMBER = re.compile(r"\s*(?P<key>\S+)\s+(?P<sign>not in|in)\s+(?P<value>.*)", re.S)
_DEEPEST = 32
_FLAG = "\u2400"
"""Before true, false and large numbers where stores keep them; twice before a text that has it."""


def check_filter(value: Any, _depth: int = 0) -> Filter:
    """Return a filter if it is one.

    Numbers are compared as numbers, whole or not (which is greater: as float64 tells); text and
    true or false only for equality. A field that holds a list fits where one of its values does. A
    document without the field fits `ne` and `nin` alone.

    Raises:
        InputError: with what is wrong and what is allowed.
    """
    if not isinstance(value, Mapping) or _depth > _DEEPEST:
        raise InputError(
            f'a filter is {short(value)}; write {{"type": "eq", "key": ..., "value": ...}} or '
            f'{{"type": "and", "filters": [...]}}, nested {_DEEPEST} deep at most'
        )
    kind = value.get("type")
    fields = {"type", "filters"} if kind in _JOINS else {"type", "key", "value"}
    if kind not in (*_JOINS, *_COMPARISONS):
        allowed = [*_COMPARISONS, *_JOINS]
        raise InputError(
            f"filter type {short(kind)} is not known; allowed: {', '.join(allowed)}."
            + closest(str(kind), allowed)
        )
    if set(value) != fields:
        raise InputError(
            f"a filter of type {kind!r} has the fields {', '.join(sorted(map(str, value)))}; give "
            f"{', '.join(sorted(fields))}"
        )
    if kind in _JOINS:
        inner = value["filters"]
        if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
            raise InputError(f"filters of {kind!r} is {short(inner)}; give a list of filters")
        return {"type": kind, "filters": [check_filter(one, _depth + 1) for one in inner]}
    return _checked_comparison(str(kind), value)


def _checked_comparison(kind: str, value: Filter) -> Filter:
    key, wanted = value["key"], value["value"]
    if not isinstance(key, str) or not key:
        raise InputError(f"a filter's key is {short(key)}; give the name of a field")
    many = kind in ("in", "nin")
    if many and (not isinstance(wanted, Sequence) or isinstance(wanted, str) or not wanted):
        raise InputError(f"the value of {kind!r} is {short(wanted)}; give a list of values")
    for one in wanted if many else [wanted]:
        number = isinstance(one, int | float) and not isinstance(one, bool)
        if number and isinstance(one, float) and not math.isfinite(one):
            raise InputError(f"a filter's value is {short(one)}; give a finite number")
        if kind in _ORDER and not number:
            raise InputError(f"{kind!r} compares numbers, and its value is {short(one)}; give one")
        if not number and not isinstance(one, str | bool):
            raise InputError(
                f"a filter's value is {short(one)}; give a text, a number, true or false"
            )
        if isinstance(one, str) and lone_surrogate(one) is not None:
            raise InputError(
                f"a filter's value is {short(one)}, which holds a lone surrogate (half a "
                "character); clean it"
            )
    return {"type": kind, "key": key, "value": list(wanted) if many else wanted}


def parse_filter(text: str) -> Filter:
    """Return the filter that a text writes: JSON, or `field=value` and the like.

    Raises:
        InputError: it is neither.
    """
    if text.lstrip().startswith("{"):
        try:
            return check_filter(json.loads(text))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the filter {short(text)} is not valid JSON: {error}") from error
    found = _MEMBER.fullmatch(text) or _WRITTEN.fullmatch(text)
    if found is None:
        raise InputError(
            f"the filter {short(text)} cannot be read; write field=value, field!=value, field>=1, "
            "field in a,b, or a JSON object"
        )
    sign = found["sign"]
    if sign in ("in", "not in"):
        values = [_value(part) for part in found["value"].split(",")]
        kind = "in" if sign == "in" else "nin"
        return check_filter({"type": kind, "key": found["key"], "value": values})
    value = _value(found["value"])
    return check_filter({"type": _SIGNS[sign], "key": found["key"], "value": value})


def _value(text: str) -> Any:
    """Return a number, true or false where the text is one; else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip()
    return value if isinstance(value, int | float | bool | str) else text.strip()


def flat(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without nesting: `a.b` names the field b of the object a.

    It also names a field that is called so. Where a document has both, it holds a list of their
    values.
    """
    found: dict[str, Any] = {}
    for name, value in _named(metadata):
        found[name] = [*_list(found[name]), *_list(value)] if name in found else value
    return found


def _named(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in metadata.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", one) for inner, one in _named(value))
        else:
            yield key, value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def fits(where: Filter, metadata: Mapping[str, Any]) -> bool:
    """Tell whether flat metadata passes a checked filter."""
    kind = where["type"]
    if kind in _JOINS:
        passed = (fits(one, metadata) for one in where["filters"])
        return all(passed) if kind == "and" else any(passed)
    values = _values(metadata.get(where["key"]))
    wanted = where["value"]
    if kind in _ORDER:
        return any(_is_number(one) and _ORDER[kind](_near(one), _near(wanted)) for one in values)
    one_of = wanted if kind in ("in", "nin") else [wanted]
    equal = any(_equal(one, other) for one in values for other in one_of)
    return equal is (kind in ("eq", "in"))


def _values(held: Any) -> list[Any]:
    """Return the values that a field holds: those of a list, and of lists in it."""
    return [one for part in held for one in _values(part)] if isinstance(held, list) else [held]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(a: Any, b: Any) -> bool:
    if _is_number(a) and _is_number(b):
        return bool(a == b)
    return type(a) is type(b) and bool(a == b)


def field_name(key: str) -> str:
    """Return a field's name as stores keep it: letters, digits and _ alone, whatever it was."""
    return re.sub(r"[^A-Za-z0-9]", lambda sign: f"_{ord(sign[0]):x}_", key)


def _near(value: float) -> float:
    """Return the nearest float64."""
    return max(-sys.float_info.max, min(value, sys.float_info.max)) * 1.0


def kept_value(value: Any) -> Any:
    """Return a field's value as stores keep it: Edge takes true for the number 1.

    A number that float64 may take for another one is kept twice, to be compared and to be equal.
    """
    if isinstance(value, list):
        kept = [kept_value(one) for one in value]
        return [part for one in kept for part in _list(one)]
    if isinstance(value, bool):
        return f"{_FLAG}{str(value).lower()}"
    if isinstance(value, str) and value.startswith(_FLAG):
        return f"{_FLAG}{value}"  # which no other value is kept as
    return [_near(value), _sign(value)] if _is_number(value) and abs(value) >= _WHOLE else value


def _sign(value: float) -> str:
    return f"{_FLAG}{int(value)}"


def qdrant_filter(where: Filter, api: Any) -> Any:
    """Return a checked filter as Qdrant's.

    Args:
        where: the filter.
        api: `qdrant_edge` or `qdrant_client.models`, which name the same classes.
    """
    kind = where["type"]
    if kind in _JOINS:
        inner = [qdrant_filter(one, api) for one in where["filters"]]
        return api.Filter(must=inner) if kind == "and" else api.Filter(should=inner)
    name = f"meta.{field_name(where['key'])}"
    wanted = where["value"]
    if kind in _ORDER:
        return api.Filter(must=[_range(api, name, **{kind: _near(wanted)})])
    one_of = wanted if kind in ("in", "nin") else [wanted]
    equal = [_equals(api, name, one) for one in one_of]
    return api.Filter(should=equal) if kind in ("eq", "in") else api.Filter(must_not=equal)


def _range(api: Any, name: str, **bounds: float) -> Any:
    make = api.RangeFloat if hasattr(api, "RangeFloat") else api.Range
    return api.FieldCondition(key=name, range=make(**bounds))


def _equals(api: Any, name: str, value: Any) -> Any:
    if _is_number(value) and abs(value) >= _WHOLE:
        return api.FieldCondition(key=name, match=api.MatchValue(value=_sign(value)))
    if _is_number(value):  # whole or not: a payload may hold 3.0 where 3 is asked for
        return _range(api, name, gte=float(value), lte=float(value))
    return api.FieldCondition(key=name, match=api.MatchValue(value=kept_value(value)))
