"""The tokenizer of a GGUF file, made of the vocabulary that the file lists.

What llama.cpp does where the file is silent was read in its `src/llama-vocab.cpp`. No tokenizer
class of transformers stands between: each brings special tokens of its own, which the file's
network has no rows for, and rules of its own for the names and spaces that the file gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from embedlm.backbone.gguf_checks import NONE
from embedlm.backbone.gguf_file import GgufFile
from embedlm.backbone.gguf_splits import WHOLE_WORDS_FIRST, set_splitting, splitting_of
from embedlm.errors import ModelError
from embedlm.prompt.special import surround_with

__all__ = ["gguf_tokenizer"]

_UNKNOWN, _CONTROL, _DEFINED = 2, 3, 4
"""Types of tokens that are found in a text before it is split."""
_SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""A file's names of special tokens, and transformers' names."""
_SENTENCEPIECE = {"bos": 1, "eos": 2, "unknown": 0}
"""The special tokens of a SentencePiece vocabulary that names none."""
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def gguf_tokenizer(file: GgufFile) -> Any:
    """Return the tokenizer that a file describes, whose settings were checked (`gguf_checks`).

    Raises:
        ModelError: the vocabulary is missing or contradicts itself.
    """
    tokens = _tokens(file)
    kind, name = splitting_of(file)
    special = _special(file, kind, len(tokens))
    if kind == "gpt2":
        core = _byte_level(file, tokens)
        set_splitting(core, name)
    else:
        core = _sentencepiece(file, tokens, special.get("unk"))
    _find_whole(core, file, tokens, special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{f"{short}_token": tokens[special[short]] for short in special},
    )
    tokenizer.chat_template = file.settings.get("tokenizer.chat_template")
    begun = kind == "llama" or name in WHOLE_WORDS_FIRST
    before = _added(file, "bos", special, silent=begun)
    surround_with(tokenizer, before, _added(file, "eos", special, silent=False))
    return tokenizer


def _tokens(file: GgufFile) -> list[str]:
    """Return the vocabulary; an empty token gets a name, as in llama.cpp."""
    listed = file.settings["tokenizer.ggml.tokens"]
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(listed)]
    if len(set(tokens)) < len(tokens):
        raise ModelError(
            f"{file.path} is damaged: its vocabulary of {len(tokens)} tokens has only "
            f"{len(set(tokens))} different ones; get it again"
        )
    return tokens


def _special(file: GgufFile, kind: str, size: int) -> dict[str, int]:
    """Return the ids of the special tokens by transformers' names."""
    silent = _SENTENCEPIECE if kind == "llama" else {}
    ids = {}
    for name, short in _SPECIAL.items():
        for identity in (file.settings.get(f"tokenizer.ggml.{name}_token_id"), silent.get(name)):
            if identity in NONE:
                break
            if isinstance(identity, int) and identity < size:
                ids[short] = identity
                break
    return ids


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> Tokenizer:
    """Return a tokenizer that spells texts in bytes."""
    core = Tokenizer(models.BPE(_numbered(tokens), _stated_merges(file) or []))
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(file: GgufFile, tokens: Sequence[str], unknown: int | None) -> Tokenizer:
    """Return a tokenizer that writes spaces as a character and unknown characters in bytes."""
    vocabulary = _numbered(tokens)
    merges = _stated_merges(file) or _implied_merges(file, vocabulary)
    core = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    silent = not file.architecture.startswith("gemma")  # its files were silent at first
    begins = bool(file.settings.get("tokenizer.ggml.add_space_prefix", silent))
    spaces = normalizers.Replace(" ", _SPACE)
    before = [normalizers.Prepend(_SPACE)] if begins else []
    core.normalizer = normalizers.Sequence([*before, spaces])
    after = [decoders.Strip(" ", 1, 0)] if begins else []
    core.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return core


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _stated_merges(file: GgufFile) -> list[tuple[str, str]] | None:
    """Return the merges that a file lists, or None."""
    listed = file.settings.get("tokenizer.ggml.merges")
    if listed is None:
        return None
    ends = [(merge, merge.find(" ", 1)) for merge in listed]  # a first token may begin with one
    return [(merge[:end], merge[end + 1 :]) for merge, end in ends]


def _implied_merges(file: GgufFile, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every pair of tokens that make a third, those of the highest score first."""
    scores = file.settings["tokenizer.ggml.scores"]
    by_score = sorted(vocabulary.items(), key=lambda entry: -scores[entry[1]])
    return [
        (token[:cut], token[cut:])
        for token, _ in by_score
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]


def _find_whole(
    core: Tokenizer, file: GgufFile, tokens: Sequence[str], special: Mapping[str, int]
) -> None:
    """Make a tokenizer find special tokens, and those that the file's maker added, in texts."""
    types = file.settings.get("tokenizer.ggml.token_type", [0] * len(tokens))
    named = set(special.values())
    added = [
        AddedToken(token, normalized=False, special=kind != _DEFINED or i in named)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _DEFINED) or i in named
    ]
    core.add_tokens(added)


def _added(file: GgufFile, name: str, special: Mapping[str, int], *, silent: bool) -> list[int]:
    """Return the token that is put before or after each text; `silent`: the file does not say."""
    if not file.settings.get(f"tokenizer.ggml.add_{name}_token", silent):
        return []
    if name not in special:
        raise ModelError(
            f"{file.path} adds its {name.upper()} to each text and does not say which token that "
            f"is (tokenizer.ggml.{name}_token_id); get a newer file of the model"
        )
    return [special[name]]
