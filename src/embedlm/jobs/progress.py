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
    show: bool | None,
    total: int | None,
    *,
    unit: str = "text",
    label: str = "encode",
    scale: bool = False,
    least: int = LONG,
) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with the number of items that have just been finished.

    Args:
        show: show the bar or not; None shows it on a terminal for jobs of `least` items or more.
        total: number of items; None if it is not known.
        unit: what an item is.
        label: what is done with it.
        scale: write large numbers as 12k or 3.4M.
        least: items of the shortest job that shows a bar unasked.
    """
    shown = show
    if shown is None:
        shown = sys.stderr.isatty() and (total is None or total >= least)
    with tqdm(total=total, unit=unit, desc=label, unit_scale=scale, disable=not shown) as bar:
        yield bar.update
