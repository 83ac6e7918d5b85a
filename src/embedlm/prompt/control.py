"""Control tokens that a text spells out.

A tokenizer reads the characters `</s>` as its EOS, whoever wrote them: a template, or the author of
a web page. Here a text that spells a control token is told from others, and gets a tokenizer that
knows the control tokens by other names: those names stand in the template, and what the text spells
is text.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from embedlm.errors import UnsupportedError
from embedlm.prompt.special import tokenizer_errors

__all__ = ["ControlTokens"]

# Some files do not mark these as special. Other unmarked tokens are words: tags, runs of spaces.
_LOOKS_LIKE_CONTROL = re.compile(r"<\|.+\|>|</?(image|video|audio)>")


class ControlTokens:
    """The control tokens of a tokenizer: those marked as special, and others that look like it."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a fast tokenizer of transformers.

        Raises:
            UnsupportedError: it is a slow one.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedError(
                f"{type(tokenizer).__name__} has no fast implementation (tokenizer.json); "
                "convert it with transformers first"
            )
        self._tokenizer = tokenizer
        self._core = tokenizer.backend_tokenizer
        added = self._core.get_added_tokens_decoder().items()
        contents = {
            token.content: index
            for index, token in added
            if token.special or _LOOKS_LIKE_CONTROL.fullmatch(token.content)
        }
        for token, index in zip(
            tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True
        ):
            if index is not None:  # a config may name a token that is none, such as ""
                contents.setdefault(str(token), int(index))
        # Some tokenizers pad with "+" or "!": in a text these are never anything but text.
        self._ids = {word: i for word, i in contents.items() if len(word) > 1 and word.strip()}
        self._nonce = secrets.token_hex(12)
        self._words = {self._name(index): word for word, index in self._ids.items()}
        self._cover = secrets.token_hex(12)
        self._covered = {f"{self._cover}{index:08d}": word for word, index in self._ids.items()}
        self._pattern = _any_of(self._ids)
        self._marks = _look_alikes({word[0] for word in self._ids})

    def _name(self, index: int) -> str:
        """Return the other name of a control token, which no text holds."""
        return f"{self._nonce}{index:08d}"

    def find(self, text: str) -> str | None:
        """Return the first control token that a text spells; None: it spells none.

        Some tokenizers turn other characters (full-width ones) into those of a control token.
        """
        if not any(mark in text for mark in self._marks):
            return None
        match = self._pattern.search(text)
        if match is None and not text.isascii() and self._core.normalizer is not None:
            match = self._pattern.search(self._core.normalizer.normalize_str(text))
        return None if match is None else match.group()

    def renamed(self, template: str) -> str:
        """Return a template's text with its control tokens under their other names."""
        return self._pattern.sub(lambda match: self._name(self._ids[match.group()]), template)

    def restored(self, text: str) -> str:
        """Return a text with the control tokens under their own names."""
        return re.sub(rf"{self._nonce}\d{{8}}", lambda match: self._words[match.group()], text)

    def hidden(self, text: str) -> str:
        """Return a text whose control tokens are out of the way of `renamed`; see `revealed`."""
        return self._pattern.sub(lambda found: f"{self._cover}{self._ids[found.group()]:08d}", text)

    def revealed(self, text: str) -> str:
        """Return a text with what `hidden` took out of the way."""
        return re.sub(rf"{self._cover}\d{{8}}", lambda found: self._covered[found.group()], text)

    @tokenizer_errors()
    def ids(self, template: str, values: Sequence[str], *, special: bool) -> list[int]:
        """Return the ids of a filled template; its own control tokens alone are read as such.

        Args:
            template: filled with `hidden` values.
            values: what fills it, as it was given.
            special: whether the tokenizer adds its own special tokens.

        Raises:
            ModelError: the tokenizer cannot tokenise.
        """
        if not any(map(self.find, values)):
            string = self.revealed(template)
            return list(self._tokenizer(string, add_special_tokens=special)["input_ids"])
        string = self.revealed(self.renamed(template))
        return list(self.core.encode(string, add_special_tokens=special).ids)

    @cached_property
    def core(self) -> Tokenizer:
        """The tokenizer's backend, which knows the control tokens by their other names alone."""
        state = json.loads(self._core.to_str())
        names = {word: self._name(index) for word, index in self._ids.items()}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(word, word): i for word, i in model["vocab"].items()}
        else:  # pieces with their scores
            model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if "merges" in model:
            model["merges"] = [
                pair for pair in model["merges"] if names.keys().isdisjoint(_parts(pair))
            ]
        core = Tokenizer.from_str(json.dumps(state))
        core.no_truncation()
        core.no_padding()
        return core


def _any_of(words: Any) -> re.Pattern[str]:
    """Return a pattern of any of the words, the longest first, as tokenizers take them."""
    ordered = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _look_alikes(characters: set[str]) -> tuple[str, ...]:
    """Return the characters, and those that a tokenizer's normaliser may turn into one of them."""
    found = set(characters)
    for code in (*range(0x2000, 0x2100), *range(0xFE00, 0x10000)):
        if set(unicodedata.normalize("NFKC", chr(code))) & characters:
            found.add(chr(code))
    return tuple(sorted(found))


def _parts(pair: Any) -> tuple[str, str, str]:
    """Return a merge's two parts and what it makes; old files write both parts as one string."""
    left, right = pair if isinstance(pair, list) else str(pair).split(" ", 1)
    return left, right, left + right
