"""A folder's tokenizer.json against the tokenizer that transformers made of it.

transformers 5 picks a tokenizer class by name and rebuilds the tokenizer by that class's own rules:
it takes the vocabulary from the file and leaves its other steps out. Where the class is not the
file's (a "bert" whose tokenizer.json is XLM-R's; a GPTNeoXTokenizer that closes texts with an
EOS), words become unknown tokens or the text loses its EOS, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import get_fast_tokenizer_file
from transformers.utils.hub import cached_file

from embedlm.prompt.special import core_surround, surround, surround_with

__all__ = ["build_tokenizer"]

_PLAIN = (
    "the quick brown fox jumps over the lazy dog",
    "plants make food from sunlight",
    "0123456789 a,b.c:d?",
)
_CASED = ("The QUICK Brown FOX", "für größere Äpfel", "un café très agréable")
# What a config says of letters goes before the file, as in sentence-transformers.
_LETTER_FLAGS = ("do_lower_case", "strip_accents")
_KEPT = ("model_max_length", "padding_side", "truncation_side", "chat_template")


def build_tokenizer(source: str, config: Any, declared: Mapping[str, Any]) -> Any:
    """Return the tokenizer of a folder or hub id, as its tokenizer.json says it.

    Args:
        source: folder or hub id.
        config: of the network.
        declared: the content of tokenizer_config.json.
    """
    try:
        # Given the config, the library does not ask a wrapper's own for remote code.
        tokenizer = AutoTokenizer.from_pretrained(
            source, config=config, trust_remote_code=False, use_fast=True
        )
    except TypeError:
        # The class cannot read a vocabulary of the file's kind; the file itself needs no class.
        if "auto_map" in declared or _file(source, declared) is None:
            raise
        return PreTrainedTokenizerFast.from_pretrained(source)
    return _keep_file(tokenizer, source, declared)


def _file(source: str, declared: Mapping[str, Any]) -> str | None:
    """Return the path of the tokenizer.json of a folder or hub id; None: it has none."""
    name = get_fast_tokenizer_file(list(declared.get("fast_tokenizer_files") or ()))
    return cached_file(source, name, _raise_exceptions_for_missing_entries=False)


def _keep_file(tokenizer: Any, source: str, declared: Mapping[str, Any]) -> Any:
    """Return a tokenizer that does what the tokenizer.json of its folder says.

    Only losses are made good: text that the file knows and the tokenizer does not, and special
    tokens around a text. All else stays as transformers builds it.

    Args:
        tokenizer: as transformers built it; changed in place where only special tokens are lost.
        source: folder or hub id.
        declared: the content of tokenizer_config.json.
    """
    if type(tokenizer) is PreTrainedTokenizerFast or not getattr(tokenizer, "is_fast", False):
        return tokenizer  # made of the file as it is, or of no such file
    file = _file(source, declared)
    if file is None:
        return tokenizer
    core = Tokenizer.from_file(file)
    core.no_padding()
    core.no_truncation()
    if _loses_text(tokenizer.backend_tokenizer, core, tokenizer.unk_token, declared):
        return _of_file(tokenizer, source, core)
    _keep_surround(tokenizer, core, declared)
    return tokenizer


def _loses_text(built: Any, core: Any, unknown: str | None, declared: Mapping[str, Any]) -> bool:
    """Tell whether a built tokenizer loses text that the file's knows."""
    if type(built.model) is not type(core.model) or _byte_level(built) != _byte_level(core):
        return True  # the vocabulary is read by the rules of another kind
    flagged = any(declared.get(flag) is not None for flag in _LETTER_FLAGS)
    names = {unknown, getattr(core.model, "unk_token", None)} - {None}
    return any(
        _known(core, text, names) - _known(built, text, names)
        for text in (_PLAIN if flagged else _PLAIN + _CASED)
    )


def _byte_level(core: Any) -> bool:
    """Tell whether a tokenizer spells texts in bytes."""
    steps = (core.normalizer, core.pre_tokenizer)
    return any(b"ByteLevel" in step.__getstate__() for step in steps if step is not None)


def _known(core: Any, text: str, names: set[str | None]) -> set[int]:
    """Return the places of a text whose characters reach a known token; spaces do not count."""
    try:
        encoding = core.encode(text, add_special_tokens=False)
    except BaseException as error:  # bare Exceptions, and panics of the library
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        return set()
    unknown = {core.token_to_id(name) for name in names}  # a Unigram's tokens keep their text
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    places = {i for token, span in spans if token not in unknown for i in range(*span)}
    return {i for i in places if not text[i].isspace()}


def _of_file(tokenizer: Any, source: str, core: Any) -> Any:
    """Return the tokenizer of the file itself, with the settings of the one built before."""
    settings = {name: getattr(tokenizer, name) for name in _KEPT}
    settings = {name: value for name, value in settings.items() if value is not None}
    made = PreTrainedTokenizerFast.from_pretrained(source, **settings)
    # The class's own names hold where the folder gives none and the file has such a token.
    for name, token in tokenizer.special_tokens_map.items():
        known = isinstance(token, str) and core.token_to_id(token) is not None
        if known and getattr(made, name, None) is None:
            setattr(made, name, token)
    return made


def _keep_surround(tokenizer: Any, core: Any, declared: Mapping[str, Any]) -> None:
    """Put the file's special tokens around a text where they are lost; in place."""
    built, wanted = surround(tokenizer), core_surround(core)
    lost = [
        declared.get(flag) is None and bool(set(file) - set(own))
        for flag, own, file in zip(("add_bos_token", "add_eos_token"), built, wanted, strict=True)
    ]
    if not any(lost):
        return
    before, after = (wanted[i] if lost[i] else built[i] for i in (0, 1))
    if (before, after) == wanted:
        tokenizer.backend_tokenizer.post_processor = core.post_processor
    else:
        surround_with(tokenizer, before, after)
