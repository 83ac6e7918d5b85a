"""An Embedder as a step of a scikit-learn pipeline."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, require
from embedlm.interop.models import embedder_of

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator, TransformerMixin

    from embedlm.embedder import Embedder
else:
    _base = require("sklearn.base", "eval")
    BaseEstimator, TransformerMixin = _base.BaseEstimator, _base.TransformerMixin

__all__ = ["EmbedderTransformer"]


class EmbedderTransformer(TransformerMixin, BaseEstimator):
    """Turns texts into vectors; stateless, so that `transform` works without `fit`.

    Its parameters can be searched over (`GridSearchCV`): another `recipe`, `role` or `dim`.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        recipe: Any = None,
        role: str | None = None,
        instruction: str | None = None,
        dim: int | None = None,
        normalize: bool | None = None,
    ) -> None:
        """Keep the parameters as they are, as scikit-learn asks.

        Args:
            model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
            recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.
            role: as in `encode`.
            instruction: one for all texts, as in `encode`.
            dim: as in `encode`.
            normalize: as in `encode`.
        """
        self.model = model
        self.recipe = recipe
        self.role = role
        self.instruction = instruction
        self.dim = dim
        self.normalize = normalize

    def fit(self, X: Any, y: Any = None) -> EmbedderTransformer:
        """Load the model; nothing is learned from the texts."""
        self._load()
        return self

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the dense vectors of texts, (n, dim).

        Args:
            X: a list, an array or a pandas Series of strings, or a table with one column of them.

        Raises:
            InputError: a table with several columns, or values that are no strings.
        """
        vectors: npt.NDArray[np.float32] = self._load().encode(
            _column(X),
            self.role,
            self.instruction,
            heads="dense",
            dim=self.dim,
            normalize=self.normalize,
        )
        return vectors

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Return a name for each dimension, as scikit-learn's `set_output` asks."""
        width = self.dim or self._load().dim
        return np.array([f"embedder{index}" for index in range(width)], dtype=object)

    def _load(self) -> Embedder:
        """Return the embedder, loaded once for the same model and recipe."""
        key = (self.model, self.recipe)
        if getattr(self, "_loaded_from", None) != key:
            self._embedder = embedder_of(self.model, self.recipe)
            self._loaded_from = key
        return self._embedder

    def __sklearn_clone__(self) -> EmbedderTransformer:
        """Return a transformer of the same parameters, which shares the model.

        scikit-learn would copy the weights for each fit of a search, and no fit changes them.
        """
        bare = copy(self)
        bare.model = None
        clone: EmbedderTransformer = super(EmbedderTransformer, bare).__sklearn_clone__()
        clone.model = self.model
        return clone

    def __sklearn_is_fitted__(self) -> bool:
        return True


def _column(texts: Any) -> Any:
    """Return the texts of a list, or of a table's one column."""
    if isinstance(texts, str):
        raise InputError(f"X is one string, {texts[:40]!r}; give a list of strings")
    shape: tuple[int, ...] = getattr(texts, "shape", ())
    if len(shape) < 2:
        return texts
    if len(shape) > 2 or shape[1] != 1:
        raise InputError(f"X has the shape {shape}; give one column of strings")
    return np.asarray(texts, dtype=object)[:, 0]
