"""The trained layers that a readout needs beside the backbone, and where they are read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from embedlm.backbone import Backbone
from embedlm.readout.latent import LatentAttention, load_latent
from embedlm.readout.new_projection import (
    asked_projection,
    check_projection,
    projection_for,
)
from embedlm.readout.pooling import kinds_of
from embedlm.readout.projection import Projection
from embedlm.readout.token_layers import (
    TokenLayers,
    load_token_layers,
    new_token_layers,
    weighs_tokens,
)
from embedlm.schema.recipe import Dense, MultiVector, Recipe, Sparse

__all__ = ["Parts", "needed_layers"]


@dataclass(frozen=True, slots=True)
class Parts:
    """A checkpoint's layers between token states and outputs."""

    source: str = ""
    """The folder or hub id that the layers are read from."""
    folder: Path = Path()
    """Where the source's small files are on this machine."""
    places: Sequence[tuple[str, Path]] | None = None
    """Kind and folder of the modules among which layers are; None: the folder's files tell."""
    projection: Projection | None = None
    """After the pooling."""
    latent: LatentAttention | None = None
    """Before the pooling."""
    token_layers: TokenLayers | None = None
    """For single tokens."""
    sought: frozenset[str] = frozenset()
    """The layers that were looked for, whether the checkpoint has them or not."""

    def for_recipe(self, recipe: Recipe, backbone: Backbone, *, create: bool = False) -> Parts:
        """Return these parts with those that the recipe needs and that were not yet looked for.

        Args:
            recipe: says which layers are read.
            backbone: whose width the layers must have.
            create: make untrained layers where the checkpoint has none, to train them.

        Raises:
            ModelError: files that cannot be read or do not fit the backbone.
            UnsupportedError: the recipe needs layers that the checkpoint lacks.
        """
        needed, asked = needed_layers(recipe), asked_projection(recipe)
        layers: dict[str, Any] = {}
        sought = self.sought
        if asked is not None and self.projection is None:
            sought = sought - {"projection"}  # what the checkpoint lacks may be made
        elif asked is not None and self.projection is not None:
            check_projection(asked, self.projection, self.source)
        for field in dict.fromkeys(_FIELDS[name] for name in sorted(needed - sought)):
            layer = self._read(field, needed, recipe, backbone, create=create)
            if layer is not None:
                dtype = backbone.dtype if field == "latent" else None
                layer = layer.to(backbone.device, dtype)
            if isinstance(layer, TokenLayers) and self.token_layers is not None:
                layer = _joined(self.token_layers, layer)
            layers[field] = layer
        return replace(self, sought=self.sought | needed, **layers)

    def read_by(self, recipe: Recipe) -> Parts:
        """Return only the layers that a recipe reads."""
        unread = set(_FIELDS.values()) - {_FIELDS[name] for name in needed_layers(recipe)}
        nothing: dict[str, Any] = dict.fromkeys(unread)
        return replace(self, **nothing)

    def _read(
        self,
        field: str,
        needed: frozenset[str],
        recipe: Recipe,
        backbone: Backbone,
        *,
        create: bool,
    ) -> nn.Module | None:
        if field == "projection":
            width = backbone.dim * len(kinds_of(recipe.pooling.kind))
            return projection_for(self.folder, width, recipe, create=create, places=self.places)
        if field == "latent":
            assert recipe.pooling.latent is not None
            return load_latent(self.source, backbone.dim, recipe.pooling.latent)
        weight, vector = "token weights" in needed, "token vectors" in needed
        if create and weight and not weighs_tokens(self.folder):
            return new_token_layers(backbone.dim, vector=vector)
        return load_token_layers(
            self.folder, backbone.dim, source=self.source, weight=weight, vector=vector
        )

    def modules(self) -> nn.ModuleDict:
        """Return the layers that there are, by name."""
        named = {name: getattr(self, name) for name in dict.fromkeys(_FIELDS.values())}
        return nn.ModuleDict({name: part for name, part in named.items() if part is not None})


_FIELDS = {
    "projection": "projection",
    "latent": "latent",
    "token weights": "token_layers",
    "token vectors": "token_layers",
}
"""The field of each thing that a recipe may read."""


def _joined(held: TokenLayers, read: TokenLayers) -> TokenLayers:
    """Return layers that are held, which may be trained, with those that were read after them."""
    weight = read.weight if held.weight is None else held.weight
    vector = read.vector if held.vector is None else held.vector
    return TokenLayers(weight, vector).train(held.training)


def needed_layers(recipe: Recipe) -> frozenset[str]:
    """Return what a recipe reads beside the backbone."""
    needed = {"latent"} if recipe.pooling.latent is not None else set()
    for head in recipe.heads:
        if isinstance(head, Dense) and head.projection != "none":
            needed.add("projection")
        elif isinstance(head, Sparse) and head.weights == "token":
            needed.add("token weights")
        elif isinstance(head, MultiVector) and head.projection == "auto":
            needed.add("token vectors")
    return frozenset(needed)
