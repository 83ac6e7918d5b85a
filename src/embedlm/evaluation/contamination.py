"""Whether a file of training data holds texts of a test set: overlap of n-grams of words.

A test text counts as seen if a record of the file holds one of its runs of `N` words, as GPT-3's
report counts (Brown et al., arXiv 2005.14165, appendix C), or the whole of a shorter text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.data import read_rows
from embedlm.data.words import words_of
from embedlm.evaluation.results import Result

__all__ = ["HeldOut", "N", "contamination", "grams", "texts_of"]

N = 8
"""Words of a run; shorter texts are compared whole, if they have `_LEAST` words."""
_LEAST = 4


def grams(text: str, n: int = N) -> list[str]:
    """Return the runs of n words of a text, without case and punctuation; a shorter text whole.

    A text of fewer than four words has none: such texts are in every large file.
    """
    words = words_of(text)
    if len(words) < _LEAST:
        return []
    return [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def contamination(results: Iterable[Result], training: Path) -> dict[str, dict[str, Any]]:
    """Return for each task how many of its units the training file holds, and its score without.

    Args:
        results: of one model; their units' texts are looked for.
        training: a file of records; all texts of all fields count.

    Raises:
        InputError: no such file.
        RecordError: a record that cannot be read, with file and line.
    """
    results = [result for result in results if result.sample is not None]
    wanted: dict[str, list[tuple[int, int]]] = {}
    for number, result in enumerate(results):
        assert result.sample is not None
        for unit, texts in enumerate(result.sample.texts):
            for gram in {gram for text in texts for gram in grams(text)}:
                wanted.setdefault(gram, []).append((number, unit))
    lengths = sorted({gram.count(" ") + 1 for gram in wanted})
    seen: list[set[int]] = [set() for _ in results]
    for _, record in read_rows(training):
        for text in texts_of(record):
            words = words_of(text)
            for n in lengths:
                for i in range(len(words) - n + 1):
                    for number, unit in wanted.get(" ".join(words[i : i + n]), ()):
                        seen[number].add(unit)
    return {result.task: _told(result, found) for result, found in zip(results, seen, strict=True)}


def texts_of(value: Any) -> Iterator[str]:
    """Yield all texts of a record, whatever its fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_of(inner)


def _told(result: Result, seen: set[int]) -> dict[str, Any]:
    sample = result.sample
    assert sample is not None
    clean = np.array([unit for unit in range(len(sample)) if unit not in seen], dtype=np.int64)
    score = float(sample.rows()(clean[None])[0]) if len(clean) > 1 else None
    return {
        "n": len(sample),
        "seen": len(seen),
        "share": len(seen) / len(sample),
        "score_without": score,
        "examples": [sample.texts[unit][0] for unit in sorted(seen)[:5]],
    }


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Texts of an evaluation set, by their runs of words."""

    runs: frozenset[str] = frozenset()
    lengths: tuple[int, ...] = ()
    """Numbers of words that the runs have."""

    @classmethod
    def read(cls, paths: Sequence[str | Path]) -> HeldOut:
        """Read all texts of some files.

        Raises:
            InputError: no such file.
            RecordError: a record that cannot be read, with file and line.
        """
        runs = frozenset(
            run
            for path in paths
            for _, record in read_rows(path)
            for text in texts_of(record)
            for run in grams(text)
        )
        return cls(runs, tuple(sorted({run.count(" ") + 1 for run in runs})))

    def holds(self, text: str) -> bool:
        """Tell whether a text holds a run of the held-out words, or is the whole of a short one."""
        words = words_of(text)
        return any(
            " ".join(words[i : i + n]) in self.runs
            for n in self.lengths
            for i in range(len(words) - n + 1)
        )
