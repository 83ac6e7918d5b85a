"""The nearest passages by an embedder's vectors, which stay on the disk.

A block of queries is compared with a block of passages at a time, so memory does not grow with the
corpus. A matrix product rounds by the shape of its blocks; what may be among the nearest is scored
again, pair by pair, so that a score depends on its two texts alone and equal passages tie.

Shapes: Q queries, N passages, B passages of a block, D width, K depth, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import JobError
from embedlm.readout.embeddings import finite_scores
from embedlm.readout.similarity import DENSE, dot, normalize
from embedlm.search.exact import ROUNDING

__all__ = ["VectorFile", "nearest", "pair_scores", "prepared"]

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
_SCORES = 1 << 24
"""Scores computed at once: 64 MiB of float32."""
_VALUES = 1 << 23
"""Numbers of the passages' vectors that are in memory at once: 32 MiB."""


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

    Args:
        q_QD: prepared vectors of the queries.
        vectors: of the passages.
        depth: K; no more than there are passages.
        similarity: a name of `DENSE`.

    Returns:
        Places (Q, K) and scores (Q, K).
    """
    compare = _between_prepared(similarity)
    best = _Best(len(q_QD), depth)
    size = max(1, min(_SCORES // max(1, len(q_QD)), _VALUES // vectors.width))
    for start, block_BD in vectors.blocks(size):
        c_BD = prepared(block_BD, similarity)

        def exact(rows: Places, columns: Places, c_BD: Floats = c_BD) -> Floats:
            return pair_scores(q_QD[rows], c_BD[columns], similarity)

        best.take(start, compare(q_QD, c_BD), exact)
    return best.places_QK, best.scores_QK


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
            self._merge(rows, columns + start, self._exact(rows, columns, exact))

    @staticmethod
    def _exact(rows: Places, columns: Places, exact: Callable[[Places, Places], Floats]) -> Floats:
        step = 1 << 14
        parts = [
            exact(rows[at : at + step], columns[at : at + step]) for at in range(0, len(rows), step)
        ]
        return np.concatenate(parts)

    def _merge(self, rows: Places, places: Places, scores: Floats) -> None:
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
