"""Smaller vectors by a linear layer after the pooling: principal components, or a cut rotation.

Shapes: N texts, D width, K numbers that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.embedder import Embedder
from embedlm.errors import InputError
from embedlm.readout import Readout
from embedlm.readout.new_projection import linear_projection
from embedlm.readout.projection import Projection

__all__ = ["principal_components", "reduced", "rotation"]

Floats = npt.NDArray[np.float64]


def principal_components(vectors_ND: npt.ArrayLike, dim: int) -> tuple[Floats, Floats]:
    """Return the directions of the largest variance, (K, D), and the mean, (D,).

    Raises:
        InputError: fewer vectors than directions.
    """
    x_ND = np.asarray(vectors_ND, dtype=np.float64)
    if min(x_ND.shape) < dim:
        raise InputError(
            f"{dim} principal components need as many texts and dimensions, and there are "
            f"{x_ND.shape[0]} and {x_ND.shape[1]}; give more texts, or a smaller dim"
        )
    mean_D = x_ND.mean(axis=0)
    _, _, basis = np.linalg.svd(x_ND - mean_D, full_matrices=False)
    w_KD = basis[:dim]
    # The sign of a component is the library's choice; its largest entry is made positive.
    largest = np.abs(w_KD).argmax(axis=1)
    signs = np.sign(w_KD[np.arange(dim), largest])
    return w_KD * signs[:, None], mean_D


def rotation(width: int, dim: int, seed: int = 0) -> Floats:
    """Return the first rows of a random rotation, (K, D) (Johnson and Lindenstrauss, 1984)."""
    noise = np.random.default_rng(seed).standard_normal((width, dim))
    basis, triangle = np.linalg.qr(noise)
    return np.asarray((basis * np.sign(np.diagonal(triangle))).T, dtype=np.float64)


def reduced(model: Embedder, kind: str, dim: int, texts: Sequence[str] = ()) -> Embedder:
    """Return an embedder whose dense vectors go through one more linear layer.

    The layer is part of the model: `save_pretrained` writes it.

    Args:
        model: stays as it is.
        kind: pca or random.
        dim: numbers that come out.
        texts: those that the components are found in; of pca.

    Raises:
        InputError: more numbers than the model gives, or too few texts.
    """
    model.check_one_route("reduced by a layer")
    if dim > model.readout.dense_width:
        raise InputError(
            f"the vectors have {model.readout.dense_width} numbers and cannot be reduced to {dim}"
        )
    if kind == "pca":
        vectors: Any = model.encode(list(texts), heads=["dense"], normalize=False)
        w_KD, mean_D = principal_components(vectors, dim)
        bias = torch.from_numpy(-(w_KD @ mean_D)).float()
    else:
        w_KD, bias = rotation(model.readout.dense_width, dim), None
    new = linear_projection(torch.from_numpy(w_KD.copy()).float(), bias)
    return _with_layer(model, new)


def _with_layer(model: Embedder, new: Projection) -> Embedder:
    """Return an embedder with a projection after those that the model has."""
    readout = model.readout
    before = [] if readout.parts.projection is None else readout.parts.projection.parts()
    joined = Projection([*before, *new.parts()]).float().eval().requires_grad_(False)
    parts = replace(
        readout.parts,
        projection=joined.to(readout.backbone.device),
        sought=readout.parts.sought | {"projection"},
    )
    heads = [
        {"dense": {"projection": "auto"}} if head.kind == "dense" else head.model_dump()
        for head in readout.recipe.heads
    ]
    recipe = readout.recipe.override({"heads": heads, "dim": None})
    changed = Readout(
        readout.backbone, recipe, parts, statistics=readout.statistics, norms=readout.norms
    )
    return Embedder(changed, model.executor, name=model.name, generator=model.generator)
