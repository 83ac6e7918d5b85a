"""The nearest passages by an embedder's vectors, which stay on the disk.

A block of queries is compared with a block of passages at a time, so memory does not grow with the
corpus. A matrix product rounds by the shape of its blocks; what may be among the nearest is scored
again, pair by pair, so that a score depends on its two texts alone and equal passages tie.

Shapes: Q queries, N passages, B passages of a block, D width, K depth, M passages that are kept, W
new ones of a block, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.errors import JobError
from embedlm.readout.embeddings import finite_scores
from embedlm.readout.similarity import DENSE, dot, normalize
from embedlm.search.exact import ROUNDING

__all__ = ["VectorFile", "nearest", "pair_scores", "prepared"]

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
_SCORES = 1 << 22
"""Scores computed at once: 16 MiB of float32, which stay near the cache. Larger blocks would be new
pages of memory each time, which takes longer than the product."""
_VALUES = 1 << 23
"""Numbers of the passages' vectors that are in memory at once: 32 MiB."""
_CROWD = 4
"""Times as many new passages as are kept, from which on a block's best are found by a selection."""
_LEAST_SPARE = 8
"""Passages that a scan keeps besides the nearest: rounding moves scores of one size about."""


class VectorFile:
    """Vectors of passages in a .npy file, (N, D)."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            JobError: the file is damaged.
        """
        self.path = path
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise JobError(
                f"the vectors {path} cannot be read ({error}); remove the folder {path.parent} and "
                "run the same command again"
            ) from error
        self.rows, self.width = mapped.shape
        self._offset = mapped.offset
        self._dtype = mapped.dtype

    def __len__(self) -> int:
        return int(self.rows)

    def blocks(self, size: int) -> Iterator[tuple[int, Floats]]:
        """Yield each block with the place of its first passage."""
        row = self._dtype.itemsize * self.width
        for start in range(0, self.rows, size):
            count = min(size, self.rows - start) * self.width
            # Read, not mapped: pages of a mapped file count as the process' memory.
            flat = np.fromfile(self.path, self._dtype, count, offset=self._offset + start * row)
            yield start, flat.reshape(-1, self.width)

    def take(self, places: Places) -> Floats:
        """Return the vectors of some passages, (P, D)."""
        mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return np.asarray(mapped[places], dtype=np.float32)


def prepared(vectors_ND: Floats, similarity: str) -> Floats:
    """Return vectors of length 1 where they are compared by cosine, others as they are."""
    return normalize(vectors_ND) if similarity == "cosine" else vectors_ND


def pair_scores(a_PD: Floats, b_PD: Floats, similarity: str) -> Floats:
    """Return the score of each pair of prepared vectors, (P,)."""
    scores: Floats = finite_scores(_between_prepared(similarity)(a_PD, b_PD, pairwise=True))
    return scores


def _between_prepared(similarity: str) -> Any:
    """Return the function that compares prepared vectors."""
    return dot if similarity == "cosine" else DENSE[similarity]


def nearest(
    q_QD: Floats, vectors: VectorFile, depth: int, similarity: str
) -> tuple[Places, Floats]:
    """Return the best passages of each query, best first; equal scores in the corpus' order.

    The scan keeps more than are asked for, by scores that are right but for rounding. Where what
    it dropped is out of reach of rounding, what it kept is scored anew and put in order. Where so
    many scores are alike that it is not, these queries are searched once more, each tie scored.

    Args:
        q_QD: prepared vectors of the queries.
        vectors: of the passages.
        depth: K; no more than there are passages.
        similarity: a name of `DENSE`.

    Returns:
        Places (Q, K) and scores (Q, K).
    """
    most = min(len(vectors), depth + max(_LEAST_SPARE, depth // 4))
    kept = _Kept(len(q_QD), most, 1.0 if similarity == "cosine" else None)
    for start, _, about_QB in _scores(q_QD, vectors, similarity):
        kept.take(start, about_QB)
    slack_Q = ROUNDING * kept.largest_Q
    order_QM = np.argsort(-kept.scores_QM, axis=1, kind="stable")
    about_QM = np.take_along_axis(kept.scores_QM, order_QM, 1)
    places_QM = np.take_along_axis(kept.places_QM, order_QM, 1)
    bound_Q = about_QM[:, depth - 1] - 2 * slack_Q
    crowded_Q = about_QM[:, -1] >= bound_Q
    crowded_Q &= places_QM.shape[1] < len(vectors)
    best = _Best(len(q_QD), depth)
    near_QM = (about_QM >= bound_Q[:, None]) & ~crowded_Q[:, None]
    rows, columns = np.nonzero(near_QM)
    places = places_QM[rows, columns]

    def exact(rows: Places, places: Places) -> Floats:
        return pair_scores(q_QD[rows], prepared(vectors.take(places), similarity), similarity)

    if len(rows):
        best.merge(rows, places, _in_parts(rows, places, exact))
    if crowded_Q.any():
        some = np.flatnonzero(crowded_Q)
        again = _nearest_of_alike(q_QD[some], vectors, depth, similarity)
        best.places_QK[some], best.scores_QK[some] = again.places_QK, again.scores_QK
    return best.places_QK, best.scores_QK


def _scores(
    q_QD: Floats, vectors: VectorFile, similarity: str
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield each block's first place, its prepared vectors (B, D) and its scores (Q, B)."""
    compare = _between_prepared(similarity)
    size = max(1, min(_SCORES // max(1, len(q_QD)), _VALUES // vectors.width))
    for start, block_BD in vectors.blocks(size):
        c_BD = prepared(block_BD, similarity)
        yield start, c_BD, compare(q_QD, c_BD)


def _nearest_of_alike(q_QD: Floats, vectors: VectorFile, depth: int, similarity: str) -> _Best:
    """Find the nearest among passages many of which have nearly one score."""
    best = _Best(len(q_QD), depth)
    for start, c_BD, about_QB in _scores(q_QD, vectors, similarity):

        def exact(rows: Places, columns: Places, c_BD: Floats = c_BD) -> Floats:
            return pair_scores(q_QD[rows], c_BD[columns], similarity)

        best.take(start, about_QB, exact)
    return best


def _in_parts(rows: Places, columns: Places, exact: Callable[[Places, Places], Floats]) -> Floats:
    step = 1 << 14
    parts = [
        exact(rows[at : at + step], columns[at : at + step]) for at in range(0, len(rows), step)
    ]
    return np.concatenate(parts)


class _Kept:
    """The best passages so far of each query by scores that are right but for rounding."""

    def __init__(self, count: int, most: int, bound: float | None = None) -> None:
        """Begin without passages; no score is larger than a bound, where there is one."""
        self.bound = bound
        self.scores_QM = np.full((count, most), -np.inf, np.float32)
        self.places_QM = np.full((count, most), -1, np.int64)
        self.largest_Q = np.full(count, bound or 0.0, np.float32)
        """The largest score that was seen, whatever its sign."""

    def take(self, start: int, about_QB: Floats) -> None:
        """Take in a block, the first passage of which has the place `start`."""
        queries, most = self.scores_QM.shape
        block = about_QB.shape[1]
        if self.bound is None:
            largest_Q = np.maximum(about_QB.max(1), -about_QB.min(1))
            self.largest_Q = np.maximum(self.largest_Q, largest_Q)
        floor_Q = self.scores_QM.min(1)
        above_QB = about_QB > floor_Q[:, None]
        crowd = np.count_nonzero(above_QB) > _CROWD * most * queries
        rows, columns = np.divmod(np.flatnonzero(above_QB[:0] if crowd else above_QB), block)
        counts_Q = np.bincount(rows, minlength=queries)
        width = int(counts_Q.max(initial=0))
        if crowd or width > _CROWD * most:
            top = torch.topk(torch.from_numpy(about_QB), min(most, block), dim=1)
            scores_QW, columns_QW = top.values.numpy(), top.indices.numpy()
        elif not width:
            return
        else:
            at = np.arange(len(rows)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
            scores_QW = np.full((queries, width), -np.inf, np.float32)
            columns_QW = np.full((queries, width), -1 - start, np.int64)
            scores_QW[rows, at] = about_QB[rows, columns]
            columns_QW[rows, at] = columns
        scores = np.concatenate([self.scores_QM, scores_QW], 1)
        places = np.concatenate([self.places_QM, columns_QW + start], 1)
        chosen = np.argpartition(scores, -most, axis=1)[:, -most:]
        self.scores_QM = np.take_along_axis(scores, chosen, 1)
        self.places_QM = np.take_along_axis(places, chosen, 1)


class _Best:
    """The best passages so far of each query."""

    def __init__(self, count: int, depth: int) -> None:
        self.scores_QK = np.full((count, depth), -np.inf, np.float32)
        self.places_QK = np.full((count, depth), -1, np.int64)

    def take(self, start: int, about_QB: Floats, exact: Callable[[Places, Places], Floats]) -> None:
        """Take in a block.

        Args:
            start: the place of its first passage.
            about_QB: scores but for rounding.
            exact: gives the scores of some (query, passage of the block).
        """
        depth = self.scores_QK.shape[1]
        slack_Q = ROUNDING * np.maximum(about_QB.max(1), -about_QB.min(1))
        floor_Q = self.scores_QK[:, -1] - slack_Q
        if about_QB.shape[1] > depth:
            near_QB = about_QB >= floor_Q[:, None]
            if np.count_nonzero(near_QB) > 4 * near_QB.shape[0] * depth:
                kth_Q = np.partition(about_QB, -depth, axis=1)[:, -depth]
                near_QB = about_QB >= np.maximum(floor_Q, kth_Q - slack_Q)[:, None]
        else:
            near_QB = about_QB >= floor_Q[:, None]
        rows, columns = np.nonzero(near_QB)
        if len(rows):
            self.merge(rows, columns + start, _in_parts(rows, columns, exact))

    def merge(self, rows: Places, places: Places, scores: Floats) -> None:
        """Keep the best of what is there and what is added, for the queries that get any."""
        touched = np.unique(rows)
        depth = self.scores_QK.shape[1]
        of = np.searchsorted(touched, rows)
        all_rows = np.concatenate([np.repeat(np.arange(len(touched)), depth), of])
        all_scores = np.concatenate([self.scores_QK[touched].ravel(), scores])
        all_places = np.concatenate([self.places_QK[touched].ravel(), places])
        order = np.lexsort((all_places, -all_scores, all_rows))
        counts = np.bincount(all_rows, minlength=len(touched))
        firsts = np.cumsum(counts) - counts
        chosen = order[firsts[:, None] + np.arange(depth)]
        self.scores_QK[touched] = all_scores[chosen]
        self.places_QK[touched] = all_places[chosen]
