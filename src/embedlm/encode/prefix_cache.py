"""The prefixes that recent calls ran, kept for the calls to come.

Requests of one prompt (a task description, an instruction, demonstrations) come one by one to a
server, so that no call sees what they share. Here a call's rows are compared with what is kept and
with rows of the calls before: what two calls begin with alike is run once more and then kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

from embedlm.backbone.layout import Kept

__all__ = ["Counts", "PrefixCache", "SharedPrefix", "Way", "summed"]

SHORTEST = 16
"""Tokens of a prefix; a shorter one is not worth keeping."""
GAIN = 32
"""Tokens that a longer prefix must save, to be kept beside one that is there."""
_RECENT = 8
"""Rows of earlier calls that a call is compared with."""
_PROBED = 32
"""Rows of a call by which its prefix is chosen."""
_LONGEST = 4096
"""Tokens of a recent row that are remembered."""


class Way(NamedTuple):
    """How a prefix was run; states are alike only where it is the same."""

    adapter: str | None
    layers: tuple[int, ...]
    apart: bool


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """A prefix of some of a call's rows."""

    members: list[int]
    """Rows that begin with it."""
    ids: tuple[int, ...]
    kept: Kept
    """What is kept of it; or where that will be, once it is run."""
    ready: bool


@dataclass(slots=True)
class Counts:
    """What a cache has done."""

    lookups: int = 0
    """Calls that might have shared a prefix with others."""
    hits: int = 0
    """Calls for which one was kept."""
    tokens: int = 0
    """That were not run, as they were kept: the prefix's, once a call."""
    entries: int = 0
    bytes: int = 0


def summed(counts: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Return what caches have done together, by the names that each is counted under."""
    totals: dict[str, Counts] = {}
    for one in counts:
        for name, count in one.items():
            before = totals.get(name, Counts())
            both = zip(astuple(before), astuple(count), strict=True)
            totals[name] = Counts(*map(sum, both))
    return totals


class PrefixCache:
    """Keys, values and states of the prefixes that were used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` bytes."""
        self.limit = limit
        self.counts = Counts()
        self._entries: OrderedDict[tuple[Way, tuple[int, ...]], Kept] = OrderedDict()
        self._recent: dict[Way, deque[tuple[int, ...]]] = {}
        self._lock = threading.Lock()

    def find(self, rows: Sequence[Sequence[int]], way: Way, cost: int) -> SharedPrefix | None:
        """Return the prefix that saves a call most; None: there is none.

        Args:
            rows: token ids of the call's texts.
            way: how they will run.
            cost: tokens that must be saved where not all rows have the prefix: they run apart.
        """
        with self._lock:
            self.counts.lookups += 1
            probed = rows[:: max(1, len(rows) // _PROBED)][:_PROBED]
            entry, held = _best(probed, [ids for kind, ids in self._entries if kind == way])
            recent = self._recent.setdefault(way, deque(maxlen=_RECENT))
            row, seen = _best(probed, recent)
            for one in {tuple(rows[0][:_LONGEST]), tuple(rows[-1][:_LONGEST])}:
                recent.append(one)
            ready = held >= SHORTEST and seen < held + GAIN
            ids = entry[:held] if ready else row[:seen]
            if len(ids) < SHORTEST:
                return None
            members = [at for at, own in enumerate(rows) if _begins(own, ids)]
            if len(members) < len(rows) and len(members) * len(ids) <= cost:
                return None
            if not ready:
                return SharedPrefix(members, ids, Kept(len(ids)), False)
            self._entries.move_to_end((way, entry))
            self.counts.hits += 1
            self.counts.tokens += len(ids)
            return SharedPrefix(members, ids, self._entries[way, entry].first(len(ids)), True)

    def add(self, shared: SharedPrefix, way: Way) -> None:
        """Keep a prefix that was run; what was used longest ago makes room."""
        if shared.ready or shared.kept.states is None or shared.kept.bytes > self.limit:
            return
        with self._lock:
            self._entries[way, shared.ids] = shared.kept
            self._entries.move_to_end((way, shared.ids))
            held = sum(kept.bytes for kept in self._entries.values())
            while held > self.limit:
                _, gone = self._entries.popitem(last=False)
                held -= gone.bytes
            self.counts.entries, self.counts.bytes = len(self._entries), held


def _best(
    rows: Sequence[Sequence[int]], others: Iterable[tuple[int, ...]]
) -> tuple[tuple[int, ...], int]:
    """Return which other row the most tokens of rows are shared with, and how long the prefix is.

    Of the lengths that rows share with it, the one is taken that most tokens lie in.
    """
    best: tuple[tuple[int, ...], int] = (), 0
    most = 0
    for other in others:
        lengths = sorted((_shared(row, other) for row in rows), reverse=True)
        for count, length in enumerate(lengths, 1):
            if length >= SHORTEST and count * length > most:
                best, most = (other, length), count * length
    return best


def _begins(row: Sequence[int], ids: tuple[int, ...]) -> bool:
    """Tell whether a row begins with a prefix and has a token of its own."""
    return len(row) > len(ids) and tuple(row[: len(ids)]) == ids


def _shared(row: Sequence[int], other: tuple[int, ...]) -> int:
    """Return how many ids two rows begin with alike, short of the row's last."""
    low, high = 0, min(len(row) - 1, len(other))
    while low < high:  # comparing slices is far faster than id by id
        middle = (low + high + 1) // 2
        if tuple(row[low:middle]) == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
