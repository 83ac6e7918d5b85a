"""How the vocabulary of a GGUF file splits text before its merges, or a refusal.

A file names the splitting (`tokenizer.ggml.pre`) and holds no expression. The expressions are those
of the published tokenizers, as llama.cpp has them in `src/llama-vocab.cpp`. So are the unified
characters of Qwen, which llama.cpp leaves out.
"""

from __future__ import annotations

import logging
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from embedlm.backbone.gguf_file import GgufFile
from embedlm.errors import UnsupportedError

__all__ = [
    "WHOLE_WORDS_FIRST",
    "check_splitting",
    "set_splitting",
    "splitting_of",
    "warn_of_unnamed",
]

log = logging.getLogger(__name__)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS}|{_REST}"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS}|{_REST}"
)
_LLAMA3_NAMES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0")
_BY_NAME = {
    **dict.fromkeys((*_LLAMA3_NAMES, "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "f2llmv2", "kormo"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
    "tekken": _TEKKEN,
}
_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "mellum", "a.x-4.0")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
WHOLE_WORDS_FIRST = (*_LLAMA3_NAMES, "tekken")
"""Here a word of the vocabulary is one token, whatever its merges, and texts begin with the BOS."""
_UNIFIED = ("qwen2",)
"""Here characters that Unicode spells in several ways are put into one (NFC) first."""


def check_splitting(file: GgufFile) -> None:
    """Refuse a vocabulary whose splitting is not known.

    Raises:
        UnsupportedError: naming it.
    """
    kind, name = splitting_of(file)
    if kind not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"{file.path} has a tokenizer of the kind {kind!r}; EmbedLM reads gpt2 (byte-level "
            "BPE) and llama (SentencePiece) of GGUF files. Take the model as safetensors"
        )
    if kind == "gpt2" and name not in {None, *_BY_NAME, *_AS_GPT2, *_DIGITS_APART}:
        raise UnsupportedError(
            f"{file.path} splits text by {name!r}, which EmbedLM does not know; take the model as "
            "safetensors"
        )


def warn_of_unnamed(file: GgufFile) -> None:
    """Warn of a byte-level vocabulary that does not name its splitting: it may be another."""
    if splitting_of(file) == ("gpt2", None):
        log.warning(
            "%s does not name how it splits text (tokenizer.ggml.pre), as files made before May "
            "2024 do not; it is split as by GPT-2, and a model that was trained on another "
            "splitting gives other vectors than its publisher's. Get a newer file of the model, or "
            "take it as safetensors",
            file.path,
        )


def set_splitting(core: Any, name: str | None) -> None:
    """Make a byte-level tokenizer split texts as a GGUF file names it; in place."""
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name not in _BY_NAME)
    if name in _BY_NAME:
        first: Any = pre_tokenizers.Split(Regex(_BY_NAME[name]), behavior="isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([first, whole])
    elif name in _DIGITS_APART:
        first = pre_tokenizers.Digits(individual_digits=True)
        core.pre_tokenizer = pre_tokenizers.Sequence([first, whole])
    else:
        core.pre_tokenizer = whole
    core.model.ignore_merges = name in WHOLE_WORDS_FIRST
    if name in _UNIFIED:
        core.normalizer = normalizers.NFC()


def splitting_of(file: GgufFile) -> tuple[str, str | None]:
    """Return the kind of a file's tokenizer and the name of its splitting; None: it has none."""
    name = file.settings.get("tokenizer.ggml.pre")
    return str(file.settings.get("tokenizer.ggml.model", "")), None if not name else str(name)
