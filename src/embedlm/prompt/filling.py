"""From a template's pieces to the string that is tokenised: demonstrations and clean-up."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from embedlm.errors import InputError, UnsupportedError
from embedlm.prompt.special import core_of
from embedlm.schema.prompt import Prompt
from embedlm.schema.template import DEMONSTRATION_SLOTS, Piece, fill

__all__ = [
    "clean_instruction",
    "clean_text",
    "fill_row",
    "join_blocks",
    "prepared",
    "spell",
    "spell_demonstrations",
    "strip_row",
]


def spell_demonstrations(prompt: Prompt, demonstrations: Sequence[Mapping[str, str]] | None) -> str:
    """Return what {demonstrations} stands for.

    Args:
        prompt: of the recipe.
        demonstrations: of the call; None takes the recipe's.

    Raises:
        InputError: the recipe has no template for demonstrations, or one has an unknown field.
    """
    shots = prompt.demonstrations if demonstrations is None else demonstrations
    if not shots:
        return ""
    if prompt.demonstration is None:
        raise InputError(
            "demonstrations were given, but the recipe has no prompt.demonstration template"
        )
    for shot in shots:
        unknown = [key for key in shot if key not in DEMONSTRATION_SLOTS]
        if unknown:
            raise InputError(
                f"a demonstration has the field {unknown[0]!r}; allowed: "
                f"{', '.join(DEMONSTRATION_SLOTS)}"
            )
    filled = (fill(prompt.demonstration, dict(shot), DEMONSTRATION_SLOTS) for shot in shots)
    return "".join(one + prompt.separator for one in filled)


def _clean_promptbert(text: str) -> str:
    """Add a full stop where the sentence ends in none of . ? " ' (kongds/Prompt-BERT)."""
    return text if text[-1:] in (".", "?", '"', "'") else text + "."


def _clean_prompteol(text: str) -> str:
    """Clean as kongds/scaling_sentemb: full stop, quotes to apostrophes, final ? to a full stop."""
    text = _clean_promptbert(text).replace('"', "'")
    return text[:-1] + "." if text.endswith("?") else text


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _clean_siglip(text: str) -> str:
    """Clean as SigLIP's tokenizer in big_vision: lower case, no punctuation, single blanks."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


_CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "strip": str.strip,
    "strip_all": str.strip,
    "lower": lambda text: text,  # its tokenizer does that, and knows control tokens
    "promptbert": _clean_promptbert,
    "prompteol": _clean_prompteol,
    "siglip": _clean_siglip,
}


def clean_text(text: str, rule: str) -> str:
    """Return the text after the clean-up rule of that name (`prompt.clean`)."""
    return _CLEANERS[rule](text)


def clean_instruction(text: str, rule: str, own: str) -> str:
    """Return an instruction after the rule of `prompt.instruction_end`; `own` is the recipe's."""
    if rule == "keep":
        return text
    text = text.strip() or own.strip()
    closed = not text or unicodedata.category(text[-1]).startswith("P")
    return text if closed else text + "."


def prepared(texts: Sequence[str], prompt: Prompt, tokenizer: Any, limit: int | None) -> list[str]:
    """Return texts as they are put into the template: cleaned up, and cut where they are too long.

    Args:
        texts: of a call.
        prompt: says how.
        tokenizer: counts tokens.
        limit: of the rendered prompt.
    """
    cleaned = [clean_text(text, prompt.clean) for text in texts]
    most = prompt.text_length
    if most is None:
        return cleaned
    core = core_of(tokenizer)
    return [_cut_words(text, most, limit, core) for text in cleaned]


def _cut_words(text: str, most: int, limit: int | None, core: Any) -> str:
    """Return a text without the words at its end that make it longer than `most` tokens.

    As McGill-NLP/llm2vec does: as many words stay as the share of tokens that may, counted up to
    the limit of the prompt, again and again until the text fits.
    """
    while (count := _count(text, limit, core)) > most:
        words = text.split()
        text = " ".join(words[: int(len(words) * (most / count))])
    return text


def _count(text: str, limit: int | None, core: Any) -> int:
    """Return the tokens of a text, counted up to a limit."""
    count = len(core.encode(text, add_special_tokens=False).ids)
    return count if limit is None else min(count, limit)


def fill_row(
    pieces: Sequence[Piece],
    values: Mapping[str, str],
    tokenizer: Any,
    rename: Callable[[str], str] | None = None,
) -> list[Piece]:
    """Return a template's pieces with every slot's value, empty optional blocks left out.

    Args:
        pieces: of the template.
        values: of the slots.
        tokenizer: knows what {bos}, {eos} and {mask} stand for.
        rename: gives the template's own control tokens their other names; None: they keep theirs.

    Raises:
        UnsupportedError: the template has {mask}, and the tokenizer no mask token.
    """
    row: list[Piece] = []
    seen_text = False
    for piece in pieces:
        if piece.when and not values[piece.when]:
            continue
        if piece.kind in values:
            kind = "repeat" if piece.kind == "text" and seen_text else piece.kind
            seen_text = seen_text or piece.kind == "text"
            row.append(Piece(kind, values[piece.kind], piece.block, piece.when))
            continue
        value = piece.value if piece.kind == "literal" else _token(tokenizer, piece.kind)
        value = value if rename is None else rename(value)
        row.append(piece if value is piece.value else replace(piece, value=value))
    return row


def _token(tokenizer: Any, name: str) -> str:
    """Return the token that {eos}, {bos} or {mask} stands for; nothing where there is none."""
    token = str(getattr(tokenizer, f"{name}_token", None) or "")
    if name == "mask" and not token:
        raise UnsupportedError(
            "the template has {mask}, but this tokenizer has no mask token; "
            "the recipe needs a masked language model such as BERT"
        )
    return token


def strip_row(row: list[Piece]) -> list[Piece]:
    """Strip the whole prompt, BOS and EOS apart, as some references do before tokenising."""
    out = list(row)
    for order, strip in ((range(len(out)), str.lstrip), (reversed(range(len(out))), str.rstrip)):
        for index in order:
            if out[index].kind in ("bos", "eos"):
                continue
            out[index] = replace(out[index], value=strip(out[index].value))
            if out[index].value:
                break
    return out


def spell(row: list[Piece]) -> str:
    """Return the prompt that the pieces make."""
    return "".join(piece.value for piece in row)


def join_blocks(row: list[Piece]) -> list[Piece]:
    """Join the pieces of each optional block, which is tokenised as one."""
    joined: list[Piece] = []
    for piece in row:
        if joined and piece.block and piece.block == joined[-1].block:
            joined[-1] = replace(joined[-1], kind=piece.when, value=joined[-1].value + piece.value)
        else:
            joined.append(replace(piece, kind=piece.when) if piece.block else piece)
    return joined
