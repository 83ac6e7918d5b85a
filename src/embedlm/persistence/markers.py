"""Marker tokens of ColBERT's folders, which a tokenizer would take apart.

The libraries put a marker's id before a text's ids. Here it is written in the text, so it has to
be read back as one token: `[unused0]` is a word of BERT's vocabulary, and its tokenizer reads
`[`, `unused`, `##0`, `]`; an added `[Q] ` is never met where texts are written in lower case first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from embedlm.jobs.json_files import optional_json
from embedlm.persistence.sentence_transformers import SETTINGS_FILE, is_late_interaction
from embedlm.persistence.stanford import is_stanford, marker_words

__all__ = ["keep_markers"]


def keep_markers(folder: Path, tokenizer: Any) -> None:
    """Have a tokenizer read each marker of its folder as the one token that it is; in place."""
    prefixes: list[str] = []
    if is_late_interaction(folder):
        settings = optional_json(folder / SETTINGS_FILE)
        given = [settings.get(f"{role}_prefix") for role in ("query", "document")]
        prefixes = [prefix for prefix in given if isinstance(prefix, str)]
    elif is_stanford(folder):
        prefixes = [f"{word} " for word in marker_words(folder)]
    tokens = [AddedToken(m, normalized=False, special=True) for m in _split(prefixes, tokenizer)]
    if tokens:
        tokenizer.add_tokens(tokens, special_tokens=True)


def _split(prefixes: Iterable[str], tokenizer: Any) -> list[str]:
    """Return the tokens among prefixes, or at their head, that the tokenizer takes apart."""
    known = tokenizer.get_vocab()
    found = []
    for prefix in prefixes:
        token = next((one for one in (prefix, *prefix.split()[:1]) if one in known), None)
        if token is not None and tokenizer.tokenize(token) != [token]:
            found.append(token)
    return found
