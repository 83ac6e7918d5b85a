"""Opening a model: which files, which recipe, on which device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedlm.backbone import Backbone, load_backbone
from embedlm.backbone.adapters import adapter_folder, own_adapters, split_adapters
from embedlm.embedder import Embedder
from embedlm.errors import ModelError
from embedlm.persistence import derive_recipe, layout_folder, recognise
from embedlm.readout.latent import LatentAttention, load_latent
from embedlm.readout.projection import Projection, load_projection
from embedlm.readout.requested import needs_lm_head
from embedlm.readout.token_layers import TokenLayers, load_token_layers
from embedlm.schema.recipe import Dense, MultiVector, Recipe, Sparse

__all__ = ["load"]

BUILTIN = Path(__file__).parent / "builtin"


def load(
    model: str | Path | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    device: Any = None,
    dtype: Any = "auto",
    adapters: Sequence[str] = (),
    merge: bool | None = None,
    max_length: int | dict[str, int] | None = None,
    attn: str = "auto",
    generator: Any = None,
) -> Embedder:
    """Load a model and a recipe.

    Args:
        model: a folder or hub id; None is a built-in model (no network): "builtin", which was
            tuned, or with a recipe "builtin-base", the language model before that.
        recipe: a name, path, mapping or `Recipe`; None takes the one saved with the model or
            derived from its files, else plain-mean.
        device: None chooses CUDA, MPS or CPU.
        dtype: "auto" keeps float32 checkpoints and runs half-precision ones in bfloat16 where fast;
            "int8" runs the layers' products in 8-bit integers, "fp8" in 8-bit floats.
        adapters: adapter folders or hub ids, applied in order; a relative one is also looked for
            below the model's folder and beside it. A model that is itself an adapter is put on its
            base.
        merge: merge the adapters into the weights, or keep them switchable by `adapter=` in
            `encode`; None takes the recipe's.
        max_length: in tokens, for all roles or by role.
        attn: auto, packed, sdpa or eager.
        generator: writes the texts that a recipe such as geneol wants: a model folder, an endpoint
            "http://host/v1#model", or None for the model itself.

    Raises:
        ModelError: nothing that can be loaded is there.
        RecipeError: no such recipe.
        UnsupportedError: the model cannot do what the recipe asks.
    """
    own = "builtin" if recipe is None else "builtin-base"
    name = own if model is None else str(model)
    source = _builtin(name) if name in ("builtin", "builtin-base") else name
    chosen = derive_recipe(source) if recipe is None else _asked_for(recipe, source)
    # A model that writes the variants of texts itself needs its language-model head for that.
    writes = chosen.transform is not None and generator is None
    merge = chosen.backbone.merge if merge is None else merge
    base, found = _adapters(source, chosen, adapters, merge)
    backbone = load_backbone(
        base,
        chosen.backbone,
        device=device,
        dtype=dtype,
        head=writes or any(needs_lm_head(head) for head in chosen.heads),
        attn=attn,
        adapters=found,
        merge=merge,
    )
    latent = _latent(source, chosen, backbone)
    if latent is not None:
        chosen = chosen.override({"pooling.latent": latent.config})
    return Embedder(
        backbone,
        chosen,
        name=name,
        max_length=max_length,
        generator=generator,
        projection=_projection(source, chosen, backbone),
        latent=latent,
        token_layers=_token_layers(source, chosen, backbone),
    )


def _asked_for(recipe: Any, source: str) -> Recipe:
    """Return the recipe that was given; a system's own folder says its constants better."""
    chosen = Recipe.load(recipe)
    if isinstance(recipe, str):
        own = recognise(layout_folder(source))
        if own is not None and own.name == chosen.name:
            return own
    return chosen


def _adapters(
    source: str, recipe: Recipe, given: Sequence[str], merge: bool
) -> tuple[str, list[Path]]:
    """Return the base model and the adapters to put on it: the recipe's, the given, its own."""
    base, names = split_adapters(source)
    names += [*recipe.backbone.adapters, *map(str, given)]
    folders = [adapter_folder(base, name) for name in names]
    if not folders and not merge:
        folders = own_adapters(layout_folder(base), recipe.backbone.adapter_roles.values())
    return base, list({folder.resolve(): folder for folder in folders}.values())


def _projection(source: str, recipe: Recipe, backbone: Backbone) -> Projection | None:
    """Return the linear layers after pooling, where the recipe asks for them."""
    if not any(isinstance(head, Dense) and head.projection == "auto" for head in recipe.heads):
        return None
    found = load_projection(layout_folder(source), backbone.dim)
    return None if found is None else found.to(backbone.device)


def _latent(source: str, recipe: Recipe, backbone: Backbone) -> LatentAttention | None:
    """Return the latent attention before pooling, where the recipe asks for it."""
    if recipe.pooling.latent is None:
        return None
    layer = load_latent(source, backbone.dim, recipe.pooling.latent)
    return layer.to(backbone.device, backbone.dtype)


def _token_layers(source: str, recipe: Recipe, backbone: Backbone) -> TokenLayers | None:
    """Return the layers that read single tokens, where the recipe asks for them."""
    weight = any(isinstance(head, Sparse) and head.weights == "token" for head in recipe.heads)
    vector = any(
        isinstance(head, MultiVector) and head.projection == "auto" for head in recipe.heads
    )
    if not weight and not vector:
        return None
    folder = layout_folder(source)
    layers = load_token_layers(folder, backbone.dim, weight=weight, vector=vector)
    return layers.to(backbone.device)


def _builtin(name: str) -> str:
    for folder in ("tuned", "base") if name == "builtin" else ("base",):
        if (BUILTIN / folder / "config.json").is_file():
            return str(BUILTIN / folder)
    raise ModelError(
        "the built-in model's files are missing from this installation; reinstall embedlm, or "
        "give a model folder or hub id"
    )
