"""What reads a text, written: a network or a table, and a tokenizer that cuts and closes texts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from embedlm.backbone.stored import store_weights
from embedlm.jobs.json_files import read_object, write_json
from embedlm.persistence.model2vec import is_model2vec
from embedlm.prompt.special import add_eos, surround

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["save_input"]


def save_input(embedder: Embedder, folder: Path, save_dtype: str | None, *, eos: bool) -> None:
    """Write the network or table of an embedder, and its tokenizer.

    Args:
        embedder: the model.
        folder: where they go.
        save_dtype: the weights' numbers there; None: those that they have.
        eos: whether other libraries need the tokenizer to close texts with its EOS.
    """
    embedder.executor.save(folder)
    if save_dtype is not None:
        store_weights(folder, save_dtype)
    _tokenizer(embedder, eos).save_pretrained(folder)
    if embedder.backbone.static:
        _finish_table(embedder, folder)


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
    tokenizer.init_kwargs["truncation_side"] = side  # of the others transformers writes nothing
    if not pads:
        tokenizer.pad_token = eos_token
    if closes:
        add_eos(tokenizer)
    return tokenizer
