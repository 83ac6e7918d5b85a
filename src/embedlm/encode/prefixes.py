"""What the packs of a plan keep of the prefixes they share, for as long as one is to come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from embedlm.backbone.layout import Kept
from embedlm.encode.plan import Level, Pack

__all__ = ["Prefixes"]


class Prefixes:
    """The prefixes that the pack at hand is nested in."""

    def __init__(
        self,
        packs: Sequence[Pack],
        run: Callable[[Sequence[int], int, Kept], object],
        lasting: Mapping[Level, Kept] | None = None,
    ) -> None:
        """Keep what is needed.

        Args:
            packs: in the order in which they will be asked for.
            run: runs the ids of a prefix, of which so many leading ones are kept already.
            lasting: what is kept for longer than these packs, run or still to be run.
        """
        self._lasting = lasting or {}
        self._uses = Counter(level for pack in packs for level in pack.levels)
        self._run = run
        self._held: list[tuple[Level, Kept]] = []

    def of(self, pack: Pack, row: Sequence[int]) -> Kept | None:
        """Return what is kept of a pack's prefix; None: nothing, for it is not needed again.

        What stands above the prefix is run where it has not been. The outermost one is left to the
        pack itself, which runs it with its rows.

        Args:
            pack: is run next.
            row: ids of one of its rows.
        """
        while self._held and self._held[-1][0] not in pack.levels:
            self._held.pop()
        alone = len(pack.levels) == 1
        if not pack.levels or (
            alone and self._uses[pack.levels[0]] == 1 and pack.levels[0] not in self._lasting
        ):
            return None
        for level in pack.levels[len(self._held) :]:
            above = self._held[-1][1] if self._held else None
            kept = self._lasting.get(level) or Kept(level.length, above)
            if not alone and (level not in self._lasting or kept.states is None):
                self._run(row[: level.length], 0 if above is None else above.length, kept)
            self._held.append((level, kept))
        return self._held[-1][1]
