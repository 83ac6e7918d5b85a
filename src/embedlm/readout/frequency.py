"""How common tokens are in a corpus, and what its vectors have in common.

For the averages that came before language models: TF-IDF weights, and smooth inverse frequency
(Arora et al., A simple but tough-to-beat baseline for sentence embeddings, ICLR 2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from embedlm.errors import ModelError

__all__ = ["STATISTICS_FILE", "Statistics", "count", "zipf"]

Floats = npt.NDArray[np.float32]
STATISTICS_FILE = "statistics.safetensors"
"""The file of a saved model that holds what `fit` learnt."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Token statistics of a corpus."""

    probability_V: npt.NDArray[np.float64]
    """Share of each token among all tokens."""
    documents_V: npt.NDArray[np.float64]
    """Share of texts that hold the token."""
    texts: int
    components_KD: Floats | None = None
    """Principal components of the corpus's vectors."""

    def idf(self) -> Floats:
        """ln((1 + N) / (1 + df)) + 1 for N texts."""
        df = self.documents_V * self.texts
        return (np.log((1 + self.texts) / (1 + df)) + 1).astype(np.float32)

    def sif(self, a: float) -> Floats:
        """a / (a + p(w))."""
        return (a / (a + self.probability_V)).astype(np.float32)

    def with_components(self, vectors_ND: Floats, count: int) -> Statistics:
        """Return the statistics with the first principal components of vectors (uncentred)."""
        # The Gram matrix is D x D: memory does not grow with the corpus.
        gram_DD = vectors_ND.T.astype(np.float64) @ vectors_ND.astype(np.float64)
        _, basis = np.linalg.eigh(gram_DD)
        components = basis[:, ::-1][:, :count].T
        return replace(self, components_KD=np.ascontiguousarray(components, dtype=np.float32))

    def without_components(self) -> Statistics:
        """Return the statistics of tokens alone."""
        return replace(self, components_KD=None)

    def remove_components(self, vectors_ND: Floats) -> Floats:
        """Take the common components out of vectors."""
        if self.components_KD is None:
            return vectors_ND
        common_ND = vectors_ND @ self.components_KD.T @ self.components_KD
        return (vectors_ND - common_ND).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the statistics into a model's folder."""
        values = {
            "probability": self.probability_V,
            "documents": self.documents_V,
            "texts": np.array(self.texts),
        }
        if self.components_KD is not None:
            values["components"] = self.components_KD
        save_file(values, folder / STATISTICS_FILE)

    @classmethod
    def load(cls, folder: Path, vocab_size: int, width: int | None) -> Statistics | None:
        """Return the statistics of a model's folder; None where it has no such file.

        Args:
            folder: of the model.
            vocab_size: tokens that it has.
            width: of its vectors; None: without what these have in common.

        Raises:
            ModelError: a damaged file, or that of a model of another vocabulary or width.
        """
        file = folder / STATISTICS_FILE
        if not file.is_file():
            return None
        try:
            values = load_file(file)
            shares = [values[name] for name in ("probability", "documents")]
            components = None if width is None else values.get("components")
            fit = all(one.shape == (vocab_size,) and one.dtype == np.float64 for one in shares)
            fit &= components is None or components.shape[1:] == (width,)
            if not fit or not all(np.isfinite(one).all() for one in values.values()):
                raise ValueError(f"it is not of {vocab_size} tokens and vectors of {width} numbers")
            return cls(shares[0], shares[1], int(values["texts"]), components)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ModelError(
                f"{file} cannot be read as token statistics ({error}); remove it, or call fit and "
                "save the model again"
            ) from error


def count(rows: Iterable[Sequence[int]], vocab_size: int) -> Statistics:
    """Count tokens over the token ids of a corpus's texts."""
    tokens = np.zeros(vocab_size, dtype=np.float64)
    documents = np.zeros(vocab_size, dtype=np.float64)
    texts = 0
    for row in rows:
        ids, times = np.unique(np.asarray(row, dtype=np.int64), return_counts=True)
        tokens[ids] += times
        documents[ids] += 1
        texts += 1
    return Statistics(tokens / max(tokens.sum(), 1), documents / max(texts, 1), texts)


def zipf(vocab_size: int) -> Statistics:
    """Return the statistics of an unseen corpus: p(rank) ~ 1 / (rank + 2.7).

    Vocabularies made by byte-pair merges list their tokens roughly from common to rare.
    """
    weight = 1 / (np.arange(vocab_size) + 2.7)
    probability = weight / weight.sum()
    documents = 1 - (1 - probability) ** 32  # a text of 32 tokens
    return Statistics(probability, documents, 1_000_000)
