"""The special tokens that a tokenizer adds by itself, and giving it back an EOS that it lost.

A published tokenizer_config.json may say `add_eos_token: true` while the post-processor of its
tokenizer.json adds none. transformers 4 went by the config, transformers 5 goes by the
post-processor: models that read the state of the EOS then read the last word's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tokenizers import processors
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers

from embedlm.errors import ModelError, UnsupportedError

__all__ = [
    "add_eos",
    "adds_eos",
    "core_of",
    "core_surround",
    "filling_token",
    "keep_declared",
    "lower_case",
    "surround",
    "surround_with",
    "tokenizer_errors",
]


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """Turn what the tokenizers library raises, which has no type of its own, into ModelErrors."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"the model's tokenizer cannot tokenise a text: {error}. Its tokenizer.json is "
            "incomplete; take the one that the model was trained with"
        ) from error


def core_of(tokenizer: Any) -> Any:
    """Return the core of a fast tokenizer, which reads special tokens in a text as it says.

    Whether they are split like other text stands in no file of the core: a copy of it forgets that.
    A call of the tokenizer with `truncation` or `padding` leaves both set in its core: they go.
    """
    core = tokenizer.backend_tokenizer
    if core.truncation is not None:
        core.no_truncation()
    if core.padding is not None:
        core.no_padding()
    splits = bool(tokenizer.split_special_tokens)
    if core.encode_special_tokens != splits:
        core.encode_special_tokens = splits
    return core


def surround(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before and after a text.

    Raises:
        ModelError: the tokenizer cannot tokenise.
    """
    return core_surround(tokenizer.backend_tokenizer)


@tokenizer_errors()
def core_surround(core: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer of the tokenizers library puts before and after a text.

    Raises:
        ModelError: the tokenizer cannot tokenise.
    """
    encoding = core.encode("a", add_special_tokens=True)
    flags = [bool(flag) for flag in encoding.special_tokens_mask]
    if all(flags):
        return list(encoding.ids), []
    start, end = flags.index(False), flags[::-1].index(False)
    return list(encoding.ids[:start]), list(encoding.ids[len(flags) - end :])


def adds_eos(tokenizer: Any) -> bool:
    """Tell whether a tokenizer closes every text with its EOS."""
    return tokenizer.eos_token_id is not None and surround(tokenizer)[1][-1:] == [
        tokenizer.eos_token_id
    ]


def add_eos(tokenizer: Any, *, bos: bool = False) -> None:
    """Make a tokenizer close every text with its EOS (and open it with its BOS); in place.

    Raises:
        ModelError: the tokenizer has no EOS, or does not add it even so.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer shall add an EOS, but it has none")
    if adds_eos(tokenizer):
        return
    before, after = surround(tokenizer)
    if bos and tokenizer.bos_token_id is not None and tokenizer.bos_token_id not in before:
        before = [tokenizer.bos_token_id, *before]
    surround_with(tokenizer, before, [*after, tokenizer.eos_token_id])
    if tokenizer.backend_tokenizer.encode("a").ids[-1] != tokenizer.eos_token_id:
        raise ModelError("the tokenizer does not close texts with its EOS, as its config demands")


def surround_with(tokenizer: Any, before: list[int], after: list[int]) -> None:
    """Make a tokenizer put those ids before and after every text; in place."""
    tokenizer.backend_tokenizer.post_processor = _processor(tokenizer, before, after)


def _processor(tokenizer: Any, before: list[int], after: list[int]) -> Any:
    """Return a post-processor that adds those ids and else does what the tokenizer's own did."""
    names = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in (*before, *after)}
    head, tail = [names[i] for i in before], [names[i] for i in after]
    template = processors.TemplateProcessing(
        single=[*head, "$A", *tail],
        pair=[*head, "$A", *tail, *(f"{name}:1" for name in head), "$B:1"]
        + [f"{name}:1" for name in tail],
        special_tokens=[(name, i) for i, name in names.items()],
    )
    post_processor = tokenizer.backend_tokenizer.post_processor
    state = {} if post_processor is None else json.loads(post_processor.__getstate__())
    parts = state.get("processors", [state])
    levels = [part for part in parts if part.get("type") == "ByteLevel"]
    if not levels:
        return template
    level = processors.ByteLevel(
        add_prefix_space=levels[0].get("add_prefix_space", True),
        trim_offsets=levels[0].get("trim_offsets", True),
        use_regex=levels[0].get("use_regex", True),
    )
    return processors.Sequence([level, template])


def keep_declared(tokenizer: Any, declared: Mapping[str, Any]) -> None:
    """Add the EOS that a tokenizer_config.json declares, where the tokenizer lost it."""
    if declared.get("add_eos_token") is True and tokenizer.eos_token_id is not None:
        add_eos(tokenizer, bos=declared.get("add_bos_token") is True)


def lower_case(tokenizer: Any) -> None:
    """Let a tokenizer read everything in lower case but control tokens; in place.

    As sentence-transformers does: before the tokenizer's own clean-up, so that what a text spells
    of control tokens is found as it is otherwise.
    """
    core = tokenizer.backend_tokenizer
    own: Any = core.normalizer
    parts: list[Any] = [] if own is None else [own]
    if isinstance(own, Normalizers):
        several: Any = own
        parts = list(several)
    if not any(isinstance(part, Lowercase) for part in parts):
        core.normalizer = Normalizers([Lowercase(), *parts])


def filling_token(tokenizer: Any) -> int:
    """Return the token that fills a query up: mask, or EOS where there is no mask (PyLate).

    Raises:
        UnsupportedError: the tokenizer has neither.
    """
    for name in ("mask", "eos"):
        token = getattr(tokenizer, f"{name}_token_id", None)
        if token is not None:
            return int(token)
    raise UnsupportedError(
        "the recipe fills queries up with mask tokens, and this tokenizer has neither a mask token "
        "nor an EOS; take prompt.expansion out"
    )
