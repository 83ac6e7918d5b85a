"""One progress bar for every long job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

__all__ = ["progress"]

LONG = 256
"""Jobs of fewer items show no bar unless asked to."""


@contextmanager
def progress(
    wanted: bool | None, total: int, *, unit: str = "text", label: str = "encode"
) -> Iterator[Callable[[int], object]]:
    """Give a function that is told how many items are finished.

    Args:
        wanted: show the bar; None shows it for long jobs on a terminal.
        total: number of items.
        unit: what an item is.
        label: what is done.
    """
    shown = wanted if wanted is not None else total >= LONG and sys.stderr.isatty()
    with tqdm(total=total, unit=unit, desc=label, disable=not shown) as bar:
        yield bar.update
