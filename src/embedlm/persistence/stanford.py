"""Folders of the ColBERT library: an encoder with its projection, and settings beside it.

The weights are those of a class HF_ColBERT: the encoder's, and `linear.weight`. What a key of
artifact.metadata means was read in sentence-transformers 6.2; keys that are not listed here are of
training and of indexes.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from embedlm.backbone.config import STANFORD_CLASS, network_classes
from embedlm.jobs.json_files import optional_json
from embedlm.persistence.settings import (
    COUNT,
    FLAG,
    TEXT,
    Draft,
    Setting,
    keep,
    one_of,
    read_settings,
)
from embedlm.schema.recipe import Recipe
from embedlm.schema.template import escape

__all__ = ["METADATA", "is_stanford", "marker_words", "read_stanford"]

METADATA = "artifact.metadata"
_MARKERS = {"query": ("query_token_id", "[unused0]"), "document": ("doc_token_id", "[unused1]")}
"""The key of each role's marker, a word of the vocabulary, and what it is where there is none."""
_SETTINGS = tuple(
    Setting(key, values, keep(key), null="missing")
    for key, values in (
        ("query_token_id", TEXT),
        ("doc_token_id", TEXT),
        ("query_maxlen", COUNT),
        ("doc_maxlen", COUNT),
        ("mask_punctuation", FLAG),
        ("attend_to_mask_tokens", FLAG),
        ("similarity", one_of("cosine")),
        ("interaction", one_of("colbert")),
    )
)


def is_stanford(folder: Path) -> bool:
    """Tell whether a folder's weights are those of the ColBERT library's own class."""
    return STANFORD_CLASS in network_classes(optional_json(folder / "config.json"))


def _facts(folder: Path) -> dict[str, Any]:
    draft, file = Draft(folder), folder / METADATA
    known = {setting.key for setting in _SETTINGS}
    content = {key: value for key, value in optional_json(file).items() if key in known}
    read_settings(draft, file, content, _SETTINGS)
    return draft.facts


def marker_words(folder: Path) -> list[str]:
    """Return the words that stand before queries and documents."""
    facts = _facts(folder)
    return [facts.get(key, word) for key, word in _MARKERS.values()]


def read_stanford(folder: Path) -> Recipe:
    """Return ColBERT's recipe with the settings of a folder.

    Raises:
        ModelError: a file that cannot be read.
        UnsupportedError: a value that cannot be honoured.
    """
    facts = _facts(folder)
    markers = {role: facts.get(key, word) for role, (key, word) in _MARKERS.items()}
    length = facts.get("query_maxlen", 32)
    lengths = {"query": length, "document": facts.get("doc_maxlen")}
    changes: dict[str, Any] = {
        f"prompt.{role}": f"{escape(marker)} {{text}}" for role, marker in markers.items()
    }
    skipped = list(string.punctuation) if facts.get("mask_punctuation", True) else []
    changes |= {
        "prompt.default": "{text}",
        "prompt.clean": "none",
        "prompt.max_length": {role: most for role, most in lengths.items() if most},
        "prompt.expansion": {
            "length": length,
            "attended": facts.get("attend_to_mask_tokens", False),
        },
        "heads.multi_vector.skip": skipped,
    }
    return Recipe.load("colbert").override(changes)
