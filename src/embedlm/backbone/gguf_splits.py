"""How the vocabulary of a GGUF file splits text before its merges, or a refusal.

A file names the splitting (`tokenizer.ggml.pre`) and holds no expression. The expressions are those
of the published tokenizers, as llama.cpp has them in `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, pre_tokenizers

from embedlm.backbone.gguf_file import GgufFile
from embedlm.errors import UnsupportedError

__all__ = ["check_splitting", "set_splitting"]

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
_BY_NAME = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "f2llmv2"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O),
    "tekken": _TEKKEN,
}
_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_WHOLE_WORDS_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral")
"""Here a word of the vocabulary is one token, whatever its merges, and texts begin with the BOS."""


def check_splitting(file: GgufFile) -> None:
    """Refuse a vocabulary whose splitting is not known.

    Raises:
        UnsupportedError: naming it.
    """
    kind, name = _kind_and_name(file)
    if kind not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"{file.path} has a tokenizer of the kind {kind!r}; EmbedLM reads gpt2 (byte-level "
            "BPE) and llama (SentencePiece) of GGUF files. Take the model as safetensors"
        )
    if kind == "gpt2" and name not in {*_BY_NAME, *_AS_GPT2, *_DIGITS_APART}:
        raise UnsupportedError(
            f"{file.path} splits text by {name!r}, which EmbedLM does not know; take the model as "
            "safetensors"
        )


def set_splitting(tokenizer: Any, file: GgufFile) -> None:
    """Make a tokenizer split texts as its GGUF file says, and begin them with the BOS; in place."""
    kind, name = _kind_and_name(file)
    if kind != "gpt2":
        return
    core = tokenizer.backend_tokenizer
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name not in _BY_NAME)
    if name in _BY_NAME:
        first: Any = pre_tokenizers.Split(Regex(_BY_NAME[name]), behavior="isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([first, whole])
    elif name in _DIGITS_APART:
        first = pre_tokenizers.Digits(individual_digits=True)
        core.pre_tokenizer = pre_tokenizers.Sequence([first, whole])
    else:
        core.pre_tokenizer = whole
    core.model.ignore_merges = name in _WHOLE_WORDS_FIRST
    if name in _WHOLE_WORDS_FIRST and "tokenizer.ggml.add_bos_token" not in file.settings:
        tokenizer.add_bos_token = True


def _kind_and_name(file: GgufFile) -> tuple[str, str]:
    settings = file.settings
    name = settings.get("tokenizer.ggml.pre", "gpt-2")
    return str(settings.get("tokenizer.ggml.model", "")), str(name)
