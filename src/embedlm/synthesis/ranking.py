"""The corpus as steps search it: by an embedder, or by BM25."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.errors import InputError
from embedlm.mining.corpus import Corpus
from embedlm.mining.lines import text_key
from embedlm.mining.rankings import Block, DenseMiner, Miner, WordMiner

__all__ = ["Ranked", "Ranker"]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage that was found."""

    id: str
    text: str
    score: float

    @property
    def key(self) -> bytes:
        """What it shares with texts that differ in white space alone."""
        return text_key(self.text)


class Ranker:
    """Ranks the passages of a corpus."""

    def __init__(self, model: Any, corpus: Corpus | None) -> None:
        """Take a model.

        Args:
            model: an `Embedder`, or "bm25".
            corpus: None where only pairs are compared.
        """
        self.miner: Miner = WordMiner() if model == "bm25" else DenseMiner(model)
        self.corpus = corpus

    def prepare(self, folder: Path, show_progress: bool | None) -> None:
        """Make vectors or an index of the corpus, unless they are in the folder."""
        if self.corpus is not None:
            self.miner.prepare(self.corpus, folder, show_progress)

    def best(self, queries: Sequence[str], depth: int) -> list[list[Ranked]]:
        """Return the best passages of each query, best first."""
        assert self.corpus is not None
        block = Block(list(queries), [None] * len(queries))
        depth = min(depth, len(self.corpus))
        places_QK, scores_QK = self.miner.best(block, np.arange(len(queries)), depth)
        return [
            [
                Ranked(str(line["id"]), str(line["text"]), float(score))
                for place, score in zip(places, scores, strict=True)
                if place >= 0
                for line in [self.corpus.lines[int(place)]]
            ]
            for places, scores in zip(places_QK, scores_QK, strict=True)
        ]

    def similarity(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the similarity of each query and passage.

        Raises:
            InputError: by BM25, whose scores have no scale.
        """
        if not isinstance(self.miner, DenseMiner):
            raise InputError("similarity needs an embedder, and bm25 is none; name one with -m")
        block = Block([query for query, _ in pairs], [None] * len(pairs))
        found = self.miner.text_scores(block, np.arange(len(pairs)), [text for _, text in pairs])
        return [float(score) for score in found]

    @staticmethod
    def key(text: str) -> bytes:
        """Return what a passage has in common with copies of it."""
        return text_key(text)
