"""BM25 over the passages of a corpus, by the package bm25s (Lù, arXiv 2407.03618).

The index lies in the work folder and is mapped into memory. Tokens are words (`data/words.py`).
There are no stop words and there is no stemming, which would suit one language alone.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.data.words import words_of
from embedlm.errors import require
from embedlm.jobs import new_folder

__all__ = ["WordIndex"]

K1, B = 1.5, 0.75
"""Constants of BM25: saturation of a word's count, share of the length."""


class _Rows(Sequence[list[int]]):
    """Lists of token ids in one array: a list of lists would take ten times the memory."""

    def __init__(self, ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64]) -> None:
        self.ids, self.starts = ids, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return self.ids[self.starts[index] : self.starts[index + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[index] for index in range(len(self)))


class WordIndex:
    """An index of the words of passages."""

    def __init__(self, folder: Path) -> None:
        """Open the index that `build` made in a folder."""
        bm25s: Any = require("bm25s", "search")
        self.index = bm25s.BM25.load(str(folder), mmap=True)
        self.ids: dict[str, int] = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        self.average = float((folder / "average.txt").read_text())
        counts = np.diff(self.index.scores["indptr"])
        self.count = int(self.index.scores["num_docs"])
        # The idf of Lucene, as bm25s computes it.
        self._idf = np.log(1 + (self.count - counts + 0.5) / (counts + 0.5))

    @classmethod
    def build(cls, texts: Iterable[str], folder: Path) -> WordIndex:
        """Return the index of texts, made in a folder unless it is there.

        Raises:
            MissingExtraError: bm25s is not installed.
        """
        bm25s: Any = require("bm25s", "search")
        if folder.is_dir():
            try:
                return cls(folder)
            except (OSError, ValueError, KeyError):  # damaged: it is made anew
                shutil.rmtree(folder, ignore_errors=True)
        ids: dict[str, int] = {}
        flat, starts = array("i"), array("q", [0])
        for text in texts:
            flat.extend(ids.setdefault(word, len(ids)) for word in words_of(text))
            starts.append(len(flat))
        rows = _Rows(np.frombuffer(flat, np.int32), np.frombuffer(starts, np.int64))
        index = bm25s.BM25(k1=K1, b=B, method="lucene")
        names = ids or {"": 0}
        index.scores = index.build_index_from_ids(list(names.values()), rows, show_progress=False)
        index.vocab_dict = {}
        index.unique_token_ids_set = set(names.values())
        with new_folder(folder) as unfinished:
            index.save(str(unfinished), show_progress=False)
            text = json.dumps(ids, ensure_ascii=False)
            (unfinished / "words.json").write_text(text, encoding="utf-8")
            (unfinished / "average.txt").write_text(repr(len(flat) / max(1, len(rows))))
        return cls(folder)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """Return the score of every passage, (N,)."""
        found = [self.ids[word] for word in words_of(query) if word in self.ids]
        if not found:
            return np.zeros(self.count, np.float32)
        scores: npt.NDArray[np.float32] = self.index.get_scores_from_ids(found)
        return scores

    def best(self, query: str, depth: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the best passages that share a word with a query, and their scores."""
        scores_N = self.scores(query)
        places = np.flatnonzero(scores_N)
        if depth < len(places):
            kth = np.partition(scores_N, -depth)[-depth]
            places = np.flatnonzero(scores_N >= kth)
        order = np.argsort(-scores_N[places], kind="stable")[:depth]
        return places[order].astype(np.int64), scores_N[places[order]]

    def score(self, query: str, text: str) -> float:
        """Return the score that a text would have as a passage, whether or not it is one.

        sum over words of  idf * f / (f + k1 * (1 - b + b * length / average length)), f the count
        of the word in the text (Lucene's form; Kamphuis et al., ECIR 2020).
        """
        words = words_of(text)
        counts = Counter(words)
        norm = K1 * (1 - B + B * len(words) / self.average) if self.average else K1
        return sum(
            float(self._idf[self.ids[word]]) * counts[word] / (counts[word] + norm)
            for word in words_of(query)
            if word in self.ids and counts[word]
        )
