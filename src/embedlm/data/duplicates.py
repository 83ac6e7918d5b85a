"""Near-duplicates among all texts of a job, by MinHash (Broder, 1997; the library datasketch)."""

from __future__ import annotations

from typing import Any

from embedlm.data.keys import text_key
from embedlm.data.words import words_of
from embedlm.errors import require

__all__ = ["Duplicates"]

_PERMUTATIONS = 128


class Duplicates:
    """The texts so far; memory is about 2 KB a text that is kept."""

    def __init__(self, threshold: float, run: int, seed: int = 1) -> None:
        """Begin.

        Args:
            threshold: Jaccard similarity of two texts' runs of words from which they are one.
            run: words of a run.
            seed: of the permutations.

        Raises:
            MissingExtraError: datasketch is not installed.
        """
        self._datasketch = require("datasketch", "synth")
        self.threshold, self.run, self.seed = threshold, run, seed
        self._exact: dict[bytes, str] = {}
        self._kept: list[tuple[str, Any]] = []
        self._index = (
            self._datasketch.MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
            if threshold < 1
            else None
        )

    def like(self, text: str, name: str) -> str | None:
        """Return the name of an earlier text that is like this one; None, and keep it, if none."""
        runs = sorted(self._runs(text))
        key = text_key("\n".join(runs))
        if key in self._exact:
            return self._exact[key]
        if self._index is not None:
            found = self._datasketch.MinHash(num_perm=_PERMUTATIONS, seed=self.seed)
            found.update_batch([run.encode("utf-8") for run in runs])
            for place in sorted(self._index.query(found)):
                if self._kept[place][1].jaccard(found) >= self.threshold:
                    return str(self._kept[place][0])
            self._index.insert(len(self._kept), found)
            self._kept.append((name, found))
        self._exact[key] = name
        return None

    def _runs(self, text: str) -> set[str]:
        words = words_of(text) or [text.strip()]
        n = min(self.run, len(words))
        return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}
