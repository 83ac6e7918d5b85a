"""The models that are tried, checked before anything is computed for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedlm.backbone import gguf_folder
from embedlm.backbone.adapter_files import split_adapters
from embedlm.backbone.builtin import BUILTIN
from embedlm.errors import InputError
from embedlm.persistence import derive_recipe, network_config
from embedlm.schema.recipe import Recipe

__all__ = ["NamedModel", "check_models", "split_model"]


@dataclass(frozen=True)
class NamedModel:
    """A model that is there, with the recipe that runs it."""

    name: str
    """As it was given: MODEL or MODEL@RECIPE."""
    model: str
    recipe: str | None
    """None: the model's own."""


def check_models(models: Sequence[str | NamedModel]) -> list[NamedModel]:
    """Return each model with its recipe; those that were checked before stay as they are.

    Raises:
        InputError: one is given twice, or its name is not MODEL@RECIPE.
        ModelError: one is not there.
        RecipeError: a recipe is not there.
    """
    names = [one if isinstance(one, str) else one.name for one in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the model {twice!r} is given twice; give each once")
    split = [NamedModel(one, *split_model(one)) if isinstance(one, str) else one for one in models]
    for given, one in zip(models, split, strict=True):
        if given is one:
            continue
        if one.recipe is not None:
            Recipe.load(one.recipe)
        if one.model not in BUILTIN:
            folder = gguf_folder(one.model)
            network_config(split_adapters(folder)[0])
            derive_recipe(folder)
    return split


def split_model(name: str) -> tuple[str, str | None]:
    """Return model and recipe of MODEL@RECIPE; None: the model's own.

    Raises:
        InputError: one of the two is empty.
    """
    if "@" not in name or Path(name).exists():  # a folder's path may have an @
        return name, None
    model, _, recipe = name.rpartition("@")
    if not model or not recipe:
        raise InputError(
            f"the model {name!r} lacks what stands {'before' if recipe else 'after'} the @; write "
            "MODEL or MODEL@RECIPE"
        )
    return model, recipe
