"""Progress of every long job: a bar on a terminal, or a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from tqdm.auto import tqdm

__all__ = ["Progress", "progress"]

LONG = 256
"""Jobs of fewer items show no bar unless asked to."""
PERIOD = 10.0
"""Seconds between two lines, where there is no terminal for a bar."""


class Progress:
    """Counts finished items, and shows the count.

    Args:
        bar: tqdm's; it may be disabled.
        lines: write a line now and then instead.
    """

    def __init__(self, bar: Any, *, lines: bool) -> None:
        self._bar = bar
        self._lines = lines
        self._count = 0
        self._total: int | None = bar.total
        self._last = time.monotonic()

    def __call__(self, count: int) -> None:
        """Add the number of items that have just been finished."""
        self._count += count
        self._bar.update(count)
        now = time.monotonic()
        if self._lines and now - self._last >= PERIOD:
            self._last = now
            total = "" if self._total is None else f" of {self._total:,}"
            print(  # noqa: T201 (this is what shows progress)
                f"{self._bar.desc.removesuffix(': ')}: {self._count:,}{total} {self._bar.unit}s",
                file=sys.stderr,
                flush=True,
            )

    def expect(self, total: int) -> None:
        """Set the number of items, where it was not known or was estimated."""
        self._total = self._bar.total = max(total, self._count)


@contextmanager
def progress(
    show: bool | Literal["lines"] | None,
    total: int | None,
    *,
    unit: str = "text",
    label: str = "encode",
    scale: bool = False,
    least: int = LONG,
) -> Iterator[Progress]:
    """Yield a function to call with the number of items that have just been finished.

    Args:
        show: show the bar or not; None shows it on a terminal for jobs of `least` items or more,
            and "lines" writes a line now and then to standard error where there is no terminal.
        total: number of items; None if it is not known.
        unit: what an item is.
        label: what is done with it.
        scale: write large numbers as 12k or 3.4M.
        least: items of the shortest job that shows a bar unasked.
    """
    terminal = sys.stderr.isatty()
    shown = show
    if show is None or show == "lines":
        shown = terminal and (total is None or total >= least)
    with tqdm(total=total, unit=unit, desc=label, unit_scale=scale, disable=not shown) as bar:
        bar.desc, bar.unit, bar.total = label, unit, total  # tqdm leaves them out if disabled
        yield Progress(bar, lines=show == "lines" and not terminal)
