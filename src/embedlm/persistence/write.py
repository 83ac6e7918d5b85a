"""Saving a model with its recipe, in a folder that sentence-transformers opens too where it can."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from tokenizers import Tokenizer

from embedlm.backbone.stored import store_weights
from embedlm.errors import InputError
from embedlm.jobs import disk_errors, new_folder
from embedlm.jobs.json_files import read_object, write_json
from embedlm.persistence.card import Card
from embedlm.persistence.expressible import Form, form_of
from embedlm.persistence.model2vec import is_model2vec
from embedlm.persistence.read import RECIPE_FILE
from embedlm.persistence.sentence_transformers import write_modules
from embedlm.prompt.special import add_eos, surround
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
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise InputError(f"the folder {str(folder)!r} holds something that is no model")
    kept = f"What was at {folder} before is unchanged; make room, or choose another folder"
    with disk_errors(folder, kept, also=(SafetensorError,)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as unfinished:
            _write(embedder, unfinished, card, folder.name, save_dtype)


def _write(embedder: Embedder, folder: Path, card: Card, name: str, save_dtype: str | None) -> None:
    recipe = embedder.recipe
    # sentence-transformers would read the base alone, without a word; rows it cannot read at all.
    by_row = save_dtype == "int8"
    form = None if embedder.adapters or by_row else form_of(embedder)
    embedder.executor.save(folder)
    if save_dtype is not None:
        store_weights(folder, save_dtype)
    _tokenizer(embedder, form is not None and form.prefixes.eos).save_pretrained(folder)
    if embedder.backbone.static:
        _finish_table(embedder, folder)
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


def _finish_table(embedder: Embedder, folder: Path) -> None:
    """Tell other libraries how texts are cut and vectors finished: a table's files say no more."""
    length = _own_length(embedder)
    if length is not None:
        file = folder / "tokenizer.json"
        core = Tokenizer.from_file(str(file))
        core.enable_truncation(length, direction=embedder.recipe.prompt.truncation_side)
        core.save(str(file))
    if is_model2vec(folder):
        config = read_object(folder / "config.json")
        settings = {"normalize": embedder.recipe.normalize, "max_length": length}
        write_json(folder / "config.json", {**config, **settings}, indent=2)


def _own_length(embedder: Embedder) -> int | None:
    """Return how many of a text's own tokens are read; None: all."""
    length, prompt = embedder.max_length, embedder.recipe.prompt
    if length is None or prompt.special_tokens == "none":
        return length
    return max(1, length - sum(map(len, surround(embedder.tokenizer))))


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


def _tokenizer(embedder: Embedder, eos: bool) -> Any:
    """Return the tokenizer, which cuts and closes texts as the recipe does where it can say so.

    One without a padding token pads with its EOS: other libraries refuse batches otherwise, and
    look away from padding whatever it is.
    """
    side = embedder.recipe.prompt.truncation_side
    closes = eos and embedder.tokenizer.eos_token_id is not None
    eos_token = embedder.tokenizer.eos_token
    pads = embedder.tokenizer.pad_token is not None or eos_token is None
    if not closes and pads and embedder.tokenizer.truncation_side == side:
        return embedder.tokenizer
    tokenizer = copy.deepcopy(embedder.tokenizer)
    tokenizer.truncation_side = side
    if not pads:
        tokenizer.pad_token = eos_token
    if closes:
        add_eos(tokenizer)
    return tokenizer
