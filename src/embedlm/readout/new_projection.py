"""The projection that a recipe asks for: the checkpoint's own, or a new one.

Shapes: O numbers out, I numbers in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from embedlm.errors import ModelError, UnsupportedError
from embedlm.readout.projection import Projection, ProjectionLayer, load_projection
from embedlm.schema.heads import Dense, NewProjection
from embedlm.schema.recipe import Recipe

__all__ = ["asked_projection", "check_projection", "linear_projection", "projection_for"]


def asked_projection(recipe: Recipe) -> NewProjection | None:
    """Return the projection that a recipe gives the width of; None: it gives none."""
    asked = next((head.projection for head in recipe.heads if isinstance(head, Dense)), None)
    return asked if isinstance(asked, NewProjection) else None


def projection_for(
    folder: Path,
    width: int,
    recipe: Recipe,
    *,
    create: bool,
    places: Sequence[tuple[str, Path]] | None = None,
) -> Projection | None:
    """Return the projection of a checkpoint, or a new one that its recipe asks for.

    Args:
        folder: of the model.
        width: of the vectors that go in.
        recipe: `projection: auto` takes the checkpoint's, a width the checkpoint's or a new one.
        create: whether the layer is there to be trained.
        places: of the layers, see `load_projection`.

    Raises:
        ModelError: files that are damaged, or a projection of another width or form.
        UnsupportedError: the checkpoint has none, and nothing says what it should begin with.
    """
    found, asked = load_projection(folder, width, places=places), asked_projection(recipe)
    if asked is None:
        return found
    if found is not None:
        check_projection(asked, found, str(folder))
        return found
    kind = asked.init or ("orthogonal" if create else None)
    if kind == "ridge":
        raise UnsupportedError(
            f"the recipe asks for a projection to {asked.width} numbers that starts by ridge "
            f"regression, and {str(folder)!r} has none; a plan makes it (`embedlm train`, with a "
            "teacher), or take init: orthogonal or identity"
        )
    if kind is None:
        raise UnsupportedError(
            f"the recipe asks for a projection to {asked.width} numbers, and {str(folder)!r} has "
            "none; train one with a plan (train: heads or all), or say that it may stay untrained: "
            "init: orthogonal or identity"
        )
    if kind == "identity" and asked.width > width:
        raise UnsupportedError(
            f"a projection with init: identity keeps the first numbers, and there are {width}; "
            f"give a width of at most {width} (given {asked.width}), or init: orthogonal"
        )
    weight_OI = torch.eye(asked.width, width) if kind == "identity" else _rotation(asked, width)
    return linear_projection(weight_OI, torch.zeros(asked.width) if asked.bias else None)


def check_projection(asked: NewProjection, found: Projection, name: str) -> None:
    """Refuse a checkpoint's projection of another width or form than a recipe asks for.

    Raises:
        ModelError: says both.
    """
    biased = found.parts()[-1].biased
    if (found.out_features, biased) == (asked.width, asked.bias):
        return
    bias = {True: "with a bias", False: "without a bias"}
    raise ModelError(
        f"the recipe asks for a projection to {asked.width} numbers {bias[asked.bias]}, and that "
        f"of {name!r} gives {found.out_features} {bias[biased]}; ask for what is there "
        "(projection: auto)"
    )


def _rotation(asked: NewProjection, width: int) -> Tensor:
    """Return rows of a random rotation, always the same ones, w_OI.

    Lengths and angles are kept as well as the width allows (Johnson and Lindenstrauss, 1984).
    """
    size = max(asked.width, width), min(asked.width, width)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis, triangle = torch.linalg.qr(noise)
    basis = basis * torch.sign(torch.diagonal(triangle))  # else the signs are the library's choice
    weight_OI: Tensor = (basis.mT if asked.width < width else basis).float()
    return weight_OI


def linear_projection(weight_OI: Tensor, bias_O: Tensor | None) -> Projection:
    """Return the projection y = W x + b."""
    out, into = weight_OI.shape
    layer = ProjectionLayer(into, out, bias=bias_O is not None, activation="Identity")
    with torch.no_grad():
        layer.linear.weight.copy_(weight_OI)
        if bias_O is not None:
            layer.linear.bias.copy_(bias_O)
    return Projection([layer]).float().eval().requires_grad_(False)
