"""Batches of records: the same for one seed, however often training is interrupted and resumed.

Each epoch goes through a data set in a new order. A batch comes from one data set (homogeneous) or
from all of them. Sets are drawn in proportion to their size to the power of 1 / temperature, or to
the weights that the plan gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedlm.data import Group, Pair, Records
from embedlm.errors import InputError
from embedlm.schema.tuning import Batching, Data, DynamicNegatives
from embedlm.training.dynamic_negatives import NegativeHardness
from embedlm.training.positives import KnownPositives
from embedlm.training.rows import Batch, BatchRow

__all__ = ["Batch", "BatchRow", "Batches"]


class Batches:
    """The batches of a stage, one after the other."""

    def __init__(
        self,
        sets: Sequence[Records],
        data: Sequence[Data],
        batching: Batching,
        seed: int,
        dynamic: DynamicNegatives | None = None,
        *,
        scored: bool = True,
    ) -> None:
        """Prepare the batches of a stage.

        Args:
            sets: the records of the stage's data sets, all of one kind.
            data: the plan's settings of each data set.
            batching: how records become batches.
            seed: the seed of every random choice.
            dynamic: when hard negatives are replaced; None draws them at random.
            scored: whether the scores that records hold are learnt from.

        Raises:
            InputError: the sets hold fewer than two records, or records of several kinds.
        """
        kinds = {records.kind for records in sets}
        if len(kinds) != 1:
            raise InputError(
                f"the data sets of a stage hold several kinds of record: "
                f"{', '.join(sorted(kinds))}; give each kind a stage of its own"
            )
        total = sum(len(records.items) for records in sets)
        if total < 2:
            raise InputError(f"the data hold {total} record{'s' * (total != 1)}; give at least 2")
        self.sets, self.data, self.batching, self.seed = tuple(sets), tuple(data), batching, seed
        self.kind, self.scored = sets[0].kind, scored
        self.size = min(batching.size, total)
        self.total = total
        self._positives = KnownPositives(sets)
        self._cursor = [0] * len(sets)
        self._orders: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        self._share = self._shares()
        self.negatives = batching.group_size - 1 if self._have_negatives() else 0
        """Hard negatives in each row."""
        self.hardness = (
            NegativeHardness(dynamic) if dynamic is not None and self.negatives else None
        )
        self.step = 0

    def _have_negatives(self) -> bool:
        """Tell whether every record has hard negatives or can be given some."""
        if all(records.has_negatives for records in self.sets):
            return True
        # A teacher has scored the record's own negatives: no others can stand in for them.
        scored = self.scored and any(records.has_scores for records in self.sets)
        return not scored and self.without_negatives < self.total

    @property
    def without_negatives(self) -> int:
        """Records that have no hard negatives."""
        items = (item for records in self.sets for item in records.items)
        return sum(not (isinstance(item, Group) and item.negatives) for item in items)

    def _shares(self) -> npt.NDArray[np.float64]:
        weights = [data.weight for data in self.data]
        if all(weight is not None for weight in weights):
            share = np.array(weights, dtype=np.float64)
        else:
            sizes = np.array([len(records.items) for records in self.sets], dtype=np.float64)
            share = sizes ** (1 / self.batching.mixture_temperature)
        normalised: npt.NDArray[np.float64] = share / share.sum()
        return normalised

    def skip(self, steps: int) -> None:
        """Skip the batches of the first steps."""
        while self.step < steps:
            self.next()

    def next(self) -> Batch:
        """Return the batch of the next step."""
        rng = np.random.default_rng([self.seed, 1, self.step])
        if self.batching.homogeneous or len(self.sets) == 1:
            chosen = int(rng.choice(len(self.sets), p=self._share))
            counts = [self.size if i == chosen else 0 for i in range(len(self.sets))]
            in_batch = self.data[chosen].in_batch_negatives
        else:
            counts = [int(n) for n in rng.multinomial(self.size, self._share)]
            in_batch = all(
                data.in_batch_negatives for data, n in zip(self.data, counts, strict=True) if n
            )
        seen: set[str] = set()
        rows: list[BatchRow] = []
        for source, count in enumerate(counts):
            rows += self._rows(source, count, rng, seen)
        batch = Batch(tuple(rows), self.step, in_batch)
        self.step += 1
        return batch

    def _rows(
        self, source: int, count: int, rng: np.random.Generator, seen: set[str]
    ) -> list[BatchRow]:
        """Return rows of a data set whose queries and positives are not yet in the batch.

        A repeated positive teaches nothing new. A data set with too few different positives gives
        fewer rows.
        """
        rows: list[BatchRow] = []
        tries = 0
        while len(rows) < count and tries < 4 * count + 8:
            tries += 1
            row = self._row(source, self._take(source), rng)
            if row.documents and self.kind == "groups":
                if row.documents[0] in seen or row.query in seen:
                    continue
                seen |= {row.documents[0], row.query}
            rows.append(row)
        return rows

    def _take(self, source: int) -> int:
        """Return the index of the data set's next record in the order of this epoch."""
        size = len(self.sets[source].items)
        epoch, position = divmod(self._cursor[source], size)
        self._cursor[source] += 1
        if (source, epoch) not in self._orders:
            order = np.random.default_rng([self.seed, 2, source, epoch]).permutation(size)
            self._orders = {key: o for key, o in self._orders.items() if key[0] != source}
            self._orders[source, epoch] = order
        return int(self._orders[source, epoch][position])

    def _row(self, source: int, index: int, rng: np.random.Generator) -> BatchRow:
        item = self.sets[source].items[index]
        if isinstance(item, str):
            return BatchRow(source, item)
        if isinstance(item, Pair):
            return BatchRow(source, item.first, (item.second,), item.score)
        assert isinstance(item, Group)
        positives = self._positives.of(item.query)
        first = int(rng.integers(len(item.positives)))
        if self.negatives and not item.negatives:
            drawn = self._drawn_negatives(source, item.query, positives, rng)
            documents = (item.positives[first], *drawn)
            return BatchRow(source, item.query, documents, positives=positives)
        order = rng.permutation(len(item.negatives))[: self.negatives].tolist()
        if self.hardness is not None:
            order = self.hardness.places(source, index, self.negatives, len(item.negatives))
        # A record with too few negatives repeats them, so that all groups have one size.
        chosen = [order[i % len(order)] for i in range(self.negatives)] if order else []
        teacher: tuple[float, ...] = ()
        if self.scored and item.scores:
            offset = len(item.positives)
            teacher = (item.scores[first], *(item.scores[offset + place] for place in chosen))
        documents = (item.positives[first], *(item.negatives[place] for place in chosen))
        return BatchRow(
            source, item.query, documents, teacher=teacher, index=index, positives=positives
        )

    def _drawn_negatives(
        self, source: int, query: str, positives: frozenset[str], rng: np.random.Generator
    ) -> list[str]:
        """Return positives of other records as negatives of a record that has none.

        Raises:
            InputError: nearly all records of the data set have the same positive.
        """
        items = self.sets[source].items
        negatives: list[str] = []
        for index in rng.integers(len(items), size=20 * self.negatives).tolist():
            text = items[index].positives[0]
            if text not in positives and text != query:
                negatives.append(text)
            if len(negatives) == self.negatives:
                return negatives
        raise InputError(
            f"nearly all records of the data set {self.sets[source].name!r} have the same "
            "positive, so no negatives can be drawn from it; give records with negatives, or set "
            "group_size: 1"
        )
