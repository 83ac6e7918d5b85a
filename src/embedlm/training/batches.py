"""Which records make the batch of a step: the same for a seed, however often training resumes.

Each data set is gone through in a new order each epoch. A batch comes from one set (homogeneous) or
from all; sets are drawn by their size to the power of 1 / temperature, or by given weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedlm.data import Group, Pair, Records
from embedlm.errors import InputError
from embedlm.schema.tuning import Batching, Data, DynamicNegatives
from embedlm.training.dynamic_negatives import NegativeHardness

__all__ = ["Batch", "BatchRow", "Batches"]


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One record of a batch."""

    source: int
    """Which data set it is of."""
    query: str
    documents: tuple[str, ...] = ()
    """The positive, then hard negatives; of a pair the second text."""
    score: float = 0.0
    """Of a pair."""
    teacher: tuple[float, ...] = ()
    """A teacher's score of each document."""
    index: int = -1
    """Of the record in its data set."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The records of a step."""

    rows: tuple[BatchRow, ...]
    step: int
    in_batch: bool = True
    """Whether documents of other queries may serve as negatives."""


class Batches:
    """The batches of a stage, one after the other."""

    def __init__(
        self,
        sets: Sequence[Records],
        data: Sequence[Data],
        batching: Batching,
        seed: int,
        dynamic: DynamicNegatives | None = None,
    ) -> None:
        """Take the records of a stage's data sets.

        Args:
            sets: of one kind.
            data: what the plan says of each.
            batching: how they become batches.
            seed: of all that is drawn.
            dynamic: when hard negatives are replaced; None draws them at random.

        Raises:
            InputError: sets that are too small for a batch, or of several kinds.
        """
        kinds = {one.kind for one in sets}
        if len(kinds) != 1:
            raise InputError(
                f"the data sets of a stage are of several kinds: {', '.join(sorted(kinds))}; give "
                "each kind a stage of its own"
            )
        total = sum(len(one.items) for one in sets)
        if total < 2:
            raise InputError(f"{total} record(s) are too few to train on; give at least 2")
        self.sets, self.data, self.batching, self.seed = tuple(sets), tuple(data), batching, seed
        self.kind = sets[0].kind
        self.size = min(batching.size, total)
        self.total = total
        self._cursor = [0] * len(sets)
        self._orders: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        self._share = self._shares()
        some = any(item.negatives for one in sets for item in one.items if isinstance(item, Group))
        # Scores are a teacher's of the record's own negatives: no others can stand in for them.
        fills = some and not any(one.has_scores for one in sets)
        every = all(one.has_negatives for one in sets)
        self._negatives = batching.group_size - 1 if every or fills else 0
        self.hardness = (
            NegativeHardness(dynamic) if dynamic is not None and self._negatives else None
        )
        self.step = 0

    def _shares(self) -> npt.NDArray[np.float64]:
        given = [one.weight for one in self.data]
        if all(weight is not None for weight in given):
            share = np.array(given, dtype=np.float64)
        else:
            sizes = np.array([len(one.items) for one in self.sets], dtype=np.float64)
            share = sizes ** (1 / self.batching.mixture_temperature)
        normalised: npt.NDArray[np.float64] = share / share.sum()
        return normalised

    def skip(self, steps: int) -> None:
        """Go past the batches of the first steps."""
        while self.step < steps:
            self.next()

    def next(self) -> Batch:
        """Return the next step's batch."""
        chance = np.random.default_rng([self.seed, 1, self.step])
        if self.batching.homogeneous or len(self.sets) == 1:
            one = int(chance.choice(len(self.sets), p=self._share))
            counts = [self.size if i == one else 0 for i in range(len(self.sets))]
            in_batch = self.data[one].in_batch_negatives
        else:
            counts = [int(n) for n in chance.multinomial(self.size, self._share)]
            in_batch = all(
                data.in_batch_negatives for data, n in zip(self.data, counts, strict=True) if n
            )
        seen: set[str] = set()
        rows: list[BatchRow] = []
        for source, count in enumerate(counts):
            rows += self._rows(source, count, chance, seen)
        batch = Batch(tuple(rows), self.step, in_batch)
        self.step += 1
        return batch

    def _rows(
        self, source: int, count: int, chance: np.random.Generator, seen: set[str]
    ) -> list[BatchRow]:
        """Return rows of a set, none with a positive that the batch has already.

        A positive that stands in a batch twice would be a false negative. A set without enough
        different ones gives fewer rows.
        """
        rows: list[BatchRow] = []
        tries = 0
        while len(rows) < count and tries < 4 * count + 8:
            tries += 1
            row = self._row(source, self._take(source), chance)
            if row.documents and self.kind == "groups":
                if row.documents[0] in seen or row.query in seen:
                    continue
                seen |= {row.documents[0], row.query}
            rows.append(row)
        return rows

    def _take(self, source: int) -> int:
        """Return the set's next record in this epoch's order."""
        size = len(self.sets[source].items)
        epoch, place = divmod(self._cursor[source], size)
        self._cursor[source] += 1
        if (source, epoch) not in self._orders:
            order = np.random.default_rng([self.seed, 2, source, epoch]).permutation(size)
            self._orders = {key: o for key, o in self._orders.items() if key[0] != source}
            self._orders[source, epoch] = order
        return int(self._orders[source, epoch][place])

    def _row(self, source: int, index: int, chance: np.random.Generator) -> BatchRow:
        item = self.sets[source].items[index]
        if isinstance(item, str):
            return BatchRow(source, item)
        if isinstance(item, Pair):
            return BatchRow(source, item.first, (item.second,), item.score)
        assert isinstance(item, Group)
        first = int(chance.integers(len(item.positives)))
        wanted = self._negatives
        if wanted and not item.negatives:
            return BatchRow(
                source, item.query, (item.positives[first], *self._others(source, item, chance))
            )
        order = chance.permutation(len(item.negatives))[:wanted].tolist()
        if self.hardness is not None:
            order = self.hardness.places(source, index, wanted, len(item.negatives))
        # Fewer negatives than wanted are taken again, so that all groups have one size.
        places = [order[i % len(order)] for i in range(wanted)] if order else []
        teacher: tuple[float, ...] = ()
        if item.scores:
            own = len(item.positives)
            teacher = (item.scores[first], *(item.scores[own + place] for place in places))
        documents = (item.positives[first], *(item.negatives[place] for place in places))
        return BatchRow(source, item.query, documents, teacher=teacher, index=index)

    def _others(self, source: int, item: Group, chance: np.random.Generator) -> list[str]:
        """Return positives of other records of the set, for a record without negatives."""
        items = self.sets[source].items
        found: list[str] = []
        for place in chance.integers(len(items), size=20 * self._negatives).tolist():
            text = items[place].positives[0]
            if text not in item.positives and text != item.query:
                found.append(text)
            if len(found) == self._negatives:
                return found
        raise InputError(
            f"the data set {self.sets[source].name!r} has one positive for nearly all records, so "
            "no negatives can be drawn from it; give records with negatives, or group_size: 1"
        )
