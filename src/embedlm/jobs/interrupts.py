"""What is kept of a job that is interrupted, told by a note on the interrupt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["KEPT", "keeping", "kept"]

KEPT = "what was finished is kept; to go on, give the same command again"


@contextmanager
def keeping(anything: Callable[[], bool]) -> Iterator[None]:
    """Note on an interrupt that finished work is kept, if the function says that there is any."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not kept(interrupt) and anything():
            interrupt.add_note(KEPT)
        raise


def kept(interrupt: KeyboardInterrupt) -> bool:
    """Tell whether finished work was noted as kept."""
    return KEPT in getattr(interrupt, "__notes__", ())
