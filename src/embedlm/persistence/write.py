"""Saving a model with its recipe, in a folder that sentence-transformers opens too where it can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from embedlm.errors import InputError
from embedlm.jobs import disk_errors, new_folder
from embedlm.persistence.card import Card
from embedlm.persistence.expressible import Form, form_of
from embedlm.persistence.input_files import save_input
from embedlm.persistence.read import RECIPE_FILE
from embedlm.persistence.route_files import write_router
from embedlm.persistence.router import ROUTER_FILE
from embedlm.persistence.written import write_modules
from embedlm.readout.latent import save_latent
from embedlm.readout.new_projection import asked_projection
from embedlm.readout.projection import Projection, save_projection
from embedlm.readout.token_layers import save_token_layers
from embedlm.schema.recipe import Recipe
from embedlm.vision.reader import keep_settings

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["save"]

_OPENED = {
    "dense": "SentenceTransformer",
    "sparse": "SparseEncoder",
    "multi_vector": "MultiVectorEncoder",
}
"""Its class for each form."""


def save(embedder: Embedder, folder: Path, card: Card, save_dtype: str | None = None) -> None:
    """Write the model's folder, which appears whole or not at all.

    Args:
        embedder: the model.
        folder: its place.
        card: facts for its README.
        save_dtype: the network's numbers there; None: those it runs in.

    Raises:
        InputError: the target is a file, or a folder that holds something else.
        JobError: the disk is full, or cannot be written.
    """
    if folder.is_file():
        raise InputError(f"{str(folder)!r} is a file; give a folder to save the model in")
    known = any((folder / name).is_file() for name in ("config.json", ROUTER_FILE))
    if folder.is_dir() and any(folder.iterdir()) and not known:
        raise InputError(f"the folder {str(folder)!r} holds something that is no model")
    kept = f"What was at {folder} before is unchanged; make room, or choose another folder"
    with disk_errors(folder, kept, also=(SafetensorError,)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as unfinished:
            if embedder.routes:
                form = write_router(embedder, unfinished, save_dtype)
                embedder.ranges.save(unfinished)
                card.write(embedder, unfinished, _note(embedder, form, by_row=False), folder.name)
            else:
                _write(embedder, unfinished, card, folder.name, save_dtype)


def _write(embedder: Embedder, folder: Path, card: Card, name: str, save_dtype: str | None) -> None:
    recipe = embedder.recipe
    # sentence-transformers would read the base alone, without a word; rows it cannot read at all.
    by_row = save_dtype == "int8"
    form = None if embedder.adapters or by_row else form_of(embedder)
    save_input(embedder, folder, save_dtype, eos=form is not None and form.prefixes.eos)
    dense = []
    keep_settings(embedder.backbone, folder)
    parts = embedder.readout.parts.read_by(recipe)
    if parts.projection is not None:
        dense = save_projection(parts.projection, folder)
    if parts.latent is not None:
        save_latent(parts.latent, folder)
    if parts.token_layers is not None:
        save_token_layers(parts.token_layers, folder)
        if isinstance(parts.token_layers.vector, Projection):
            dense = save_projection(parts.token_layers.vector, folder)
    (folder / RECIPE_FILE).write_text(_saved_recipe(embedder).dump(), encoding="utf-8")
    embedder.ranges.save(folder)
    statistics = embedder.readout.statistics
    if statistics is not None and recipe.pooling.reads_statistics:
        statistics.save(folder)
    if form is not None:
        write_modules(embedder, folder, form, dense)
    card.write(embedder, folder, _note(embedder, form, by_row=by_row), name)


def _note(embedder: Embedder, form: Form | None, *, by_row: bool) -> str:
    """Return what the card says of sentence-transformers, which may open the folder."""
    if by_row:
        return (
            "Its matrices are stored as int8 with one scale a row, which only EmbedLM opens; "
            '`save_pretrained(DIR, save_dtype="bfloat16")` writes a folder with expanded weights.'
        )
    if form is None:
        what = "switchable adapters" if embedder.adapters else "this recipe"
        return f"sentence-transformers cannot express {what}; open the folder with EmbedLM."
    note = f"sentence-transformers opens this folder with the same vectors ({_OPENED[form.kind]})."
    prompt = embedder.recipe.prompt
    if prompt.clean in ("strip", "strip_all"):
        note += " It does not strip white space around a text, as this recipe does."
    if prompt.special_tokens_in_text != "tokens":
        note += " It reads a control token that a text spells out as one; this recipe does not."
    return note


def _saved_recipe(embedder: Embedder) -> Recipe:
    """Return the recipe of the folder: its adapters are merged into it or lie below it."""
    recipe, switchable = embedder.recipe, bool(embedder.adapters)
    if embedder.backbone.static and recipe.prompt.max_length is None:
        recipe = recipe.override({"prompt.max_length": embedder.max_length})
    asked = asked_projection(recipe)
    if asked is not None:  # the folder has it, and without it must not be opened
        recipe = recipe.override({"heads.dense.projection.init": None})
    if not (recipe.backbone.adapters or switchable):
        return recipe
    return recipe.override({"backbone.adapters": (), "backbone.merge": not switchable})
