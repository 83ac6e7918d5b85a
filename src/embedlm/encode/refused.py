"""Which items of a call a model refuses: found by calls of fewer, after the call has failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from embedlm.errors import EmbedLMError, InputError, NotFiniteError

__all__ = ["refused"]


def refused(call: Callable[[Sequence[Any]], object], items: Sequence[Any]) -> dict[int, str]:
    """Return why a call refuses items, by place; it takes all others together.

    Args:
        call: that has failed for these items.
        items: of it.

    Raises:
        EmbedLMError: it takes each half of some items and refuses both together, or fails in
            another way: then no item is to blame.
    """
    try:
        call(items)
    except NotFiniteError as error:
        reason = "the model gave NaN or infinity for it; try dtype float32"
        return dict.fromkeys(error.rows, reason) | _without(call, items, error.rows)
    except InputError as error:
        return {0: str(error)} if len(items) == 1 else _halves(call, items, error)
    return {}


def _halves(
    call: Callable[[Sequence[Any]], object], items: Sequence[Any], error: EmbedLMError
) -> dict[int, str]:
    middle = len(items) // 2
    after = refused(call, items[middle:])
    found = refused(call, items[:middle]) | {middle + at: why for at, why in after.items()}
    if not found:
        raise error
    return found


def _without(
    call: Callable[[Sequence[Any]], object], items: Sequence[Any], rows: Sequence[int]
) -> dict[int, str]:
    left = [at for at in range(len(items)) if at not in set(rows)]
    if not left or not rows:
        return {}
    return {left[at]: why for at, why in refused(call, [items[at] for at in left]).items()}
