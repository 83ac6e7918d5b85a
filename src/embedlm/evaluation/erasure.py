"""Projections that take a concept out of vectors: hard-debias, INLP and LEACE.

Shapes: N vectors, D width, K concepts, R directions that are taken out, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, require

__all__ = ["Eraser", "hard_debias", "inlp", "leace"]

Floats = npt.NDArray[np.float64]
_ROUNDS = 20
"""Directions that INLP takes out, at most."""
_SLACK = 0.02
"""INLP stops where a classifier is no better than this above the larger class."""


@dataclass(frozen=True, slots=True)
class Eraser:
    """An affine map x - left (right^T (x - mean)), which takes a concept out of vectors."""

    left_DR: Floats
    right_DR: Floats
    mean_D: Floats

    def __call__(self, vectors_ND: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the vectors without the concept, (N, D) float32; their lengths change.

        Raises:
            InputError: vectors of another width.
        """
        x_ND = np.asarray(vectors_ND, dtype=np.float64)
        if x_ND.ndim != 2 or x_ND.shape[1] != len(self.mean_D):
            raise InputError(
                f"the vectors have the shape {x_ND.shape}; this eraser takes (n, "
                f"{len(self.mean_D)})"
            )
        out = x_ND - ((x_ND - self.mean_D) @ self.right_DR) @ self.left_DR.T
        return np.asarray(out, dtype=np.float32)

    @property
    def rank(self) -> int:
        """Directions that are taken out."""
        return int(self.left_DR.shape[1])


def leace(x_ND: npt.ArrayLike, z_NK: npt.ArrayLike) -> Eraser:
    """Return the least change of vectors after which no linear probe finds the concept.

        r(x) = x - W^+ P W (x - mean), W = Cov(x)^(-1/2), P the projection onto the columns of
        W Cov(x, z)

    Belrose et al., LEACE: Perfect linear concept erasure in closed form, NeurIPS 2023, theorem 4.3.

    Args:
        x_ND: vectors.
        z_NK: the concept: labels (N,) as numbers, or a column for each.

    Raises:
        InputError: shapes that do not fit, or a concept that is the same for all vectors.
    """
    x, z = _checked(x_ND, z_NK)
    mean = x.mean(axis=0)
    centred = x - mean
    values, basis = np.linalg.eigh(centred.T @ centred / len(x))
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    root = np.sqrt(np.where(kept, values, 1))
    whiten = (basis * np.where(kept, 1 / root, 0)) @ basis.T
    colour = (basis * np.where(kept, root, 0)) @ basis.T
    together_DK = centred.T @ (z - z.mean(axis=0)) / len(x)
    u_DK, size_K, _ = np.linalg.svd(whiten @ together_DK, full_matrices=False)
    u_DR = u_DK[:, size_K > 1e-10 * max(float(size_K[0]), 1e-300)]
    return Eraser(colour @ u_DR, whiten @ u_DR, mean)


def hard_debias(first_PD: npt.ArrayLike, second_PD: npt.ArrayLike, directions: int = 1) -> Eraser:
    """Return the projection onto what is orthogonal to the differences of pairs.

    The directions are the first principal components of the pairs about their means (Bolukbasi et
    al., NeurIPS 2016; of sentences Liang et al., ACL 2020). Vectors are neutralised, not equalised.

    Args:
        first_PD: a vector of each pair, such as of "he is here".
        second_PD: the other, such as of "she is here".
        directions: how many are taken out.

    Raises:
        InputError: shapes that do not fit, or pairs that do not differ.
    """
    a, b = (np.asarray(side, dtype=np.float64) for side in (first_PD, second_PD))
    if a.ndim != 2 or a.shape != b.shape or not 0 < directions <= min(a.shape):
        raise InputError(
            f"pairs of vectors have the shapes {a.shape} and {b.shape}; give (P, D) of both, and "
            "no more directions than pairs and dimensions"
        )
    apart = (a - b) / 2
    if not apart.any():
        raise InputError("the vectors of each pair are the same; there is no direction to take out")
    basis_DR = np.linalg.svd(np.concatenate([apart, -apart]), full_matrices=False)[2][:directions].T
    return Eraser(basis_DR, basis_DR, np.zeros(a.shape[1]))


def inlp(x_ND: npt.ArrayLike, labels_N: npt.ArrayLike, *, rounds: int = _ROUNDS) -> Eraser:
    """Return the projection onto the null space of classifiers, fitted one after the other.

    Ravfogel et al., Null it out, ACL 2020. It stops after `rounds` classifiers, or where one is not
    better on its own data than always naming the larger class.

    Args:
        x_ND: vectors.
        labels_N: of two classes.
        rounds: classifiers at most.

    Raises:
        InputError: shapes that do not fit, or labels of one class.
        MissingExtraError: scikit-learn is missing.
    """
    x, z = _checked(x_ND, labels_N)
    linear = require("sklearn.linear_model", "eval")
    labels = z[:, 0]
    larger = max(float(np.mean(labels == value)) for value in np.unique(labels))
    basis_DR = np.zeros((x.shape[1], 0))
    for _ in range(min(rounds, x.shape[1])):
        left = x - (x @ basis_DR) @ basis_DR.T
        probe = linear.LogisticRegression(max_iter=1000).fit(left, labels)
        if float(probe.score(left, labels)) <= larger + _SLACK:
            break
        basis_DR = np.linalg.qr(np.concatenate([basis_DR, probe.coef_.T], axis=1))[0]
    return Eraser(basis_DR, basis_DR, np.zeros(x.shape[1]))


def _checked(x_ND: npt.ArrayLike, z: npt.ArrayLike) -> tuple[Floats, Floats]:
    x, z_NK = np.asarray(x_ND, dtype=np.float64), np.asarray(z, dtype=np.float64)
    z_NK = z_NK[:, None] if z_NK.ndim == 1 else z_NK
    if x.ndim != 2 or z_NK.ndim != 2 or len(x) != len(z_NK) or len(x) < 2:
        raise InputError(
            f"vectors of the shape {x.shape} and a concept of {z_NK.shape} do not fit; give (N, D) "
            "and (N,) or (N, K)"
        )
    if not np.isfinite(x).all() or not np.isfinite(z_NK).all():
        raise InputError("the vectors or the concept hold NaN or infinity")
    if not np.ptp(z_NK, axis=0).any():
        raise InputError("the concept is the same for all vectors; give some of both kinds")
    return x, z_NK
