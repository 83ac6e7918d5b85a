"""Folders of model2vec without a modules.json: a table of embeddings, and settings beside it.

What a key of config.json means was read in model2vec 0.10; keys that are not listed here tell how
the table was made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedlm.backbone.config import TABLE_TYPE
from embedlm.jobs.json_files import optional_json, read_object
from embedlm.persistence.settings import COUNT, FLAG, Draft, Setting, keep, read_settings
from embedlm.schema.recipe import Recipe

__all__ = ["is_model2vec", "read_model2vec"]

_LENGTH = 512
"""Tokens that are read of a text where the folder does not say."""
_SETTINGS = (
    Setting("normalize", FLAG, keep("normalize"), null="missing"),
    Setting("max_length", COUNT, keep("max_length"), null="value"),
)


def is_model2vec(folder: Path) -> bool:
    """Tell whether a folder is model2vec's."""
    return optional_json(folder / "config.json").get("model_type") == TABLE_TYPE


def read_model2vec(folder: Path) -> Recipe:
    """Return how model2vec reads a folder: unknown tokens are left out, the others averaged.

    It also cuts a text to so many characters before it is tokenised, which is not done here.

    Raises:
        ModelError: a file that cannot be read.
        UnsupportedError: a value that cannot be honoured.
    """
    draft, file = Draft(folder), folder / "config.json"
    known = {setting.key for setting in _SETTINGS}
    content = {key: value for key, value in optional_json(file).items() if key in known}
    read_settings(draft, file, content, _SETTINGS)
    unknown = _unknown_token(read_object(folder / "tokenizer.json"))
    changes: dict[str, Any] = {
        "prompt.special_tokens": "none",
        "prompt.special_tokens_in_text": "tokens",
        "prompt.max_length": draft.facts.get("max_length", _LENGTH),
        "pooling.over": "all",
        "pooling.skip": [] if unknown is None else [unknown],
        "normalize": draft.facts.get("normalize", False),
    }
    return Recipe.load("static-mean").override({"name": "model2vec", **changes})


def _unknown_token(tokenizer: dict[str, Any]) -> str | None:
    """Return the token that stands for what the vocabulary lacks; None: there is no such token."""
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        return None
    token, index, pieces = model.get("unk_token"), model.get("unk_id"), model.get("vocab")
    if token is None and isinstance(index, int) and isinstance(pieces, list):
        token = pieces[index][0]
    return token if isinstance(token, str) else None
