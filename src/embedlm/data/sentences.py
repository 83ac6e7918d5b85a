"""Where sentences end, in scripts of all kinds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from embedlm.data.abbreviations import (
    BEFORE_NUMBERS,
    CONTINUED,
    FIRST_WORDS,
    LONGEST,
    MONTHS,
    RANKS,
    TAILS,
    TITLES,
    UNENDING,
    WHOLE,
)

__all__ = ["sentence_gaps"]

_OPEN = "\"'([{“‘„‚«»‹›"
_SHUT = "\"')]}”’“‘»›"
"""Open and close a quotation or a bracket; “ and ‘ close one in German."""
_AFTER = "|".join(rf"(?<=[.!?]{f'[{re.escape(_SHUT)}]' * shut})" for shut in (0, 1, 2))
_NOT_ON = r"(?![»›](?:\s|\Z)|[.!?]+(?:\s|\Z))"
"""Not before a sign that closes, nor before another mark: both may stand after a blank."""
_PLAIN = r"((?<=[A-Za-z]{3}[.!?])\s++(?=[A-Z]))"
"""Lies between two sentences, but for `TAILS`."""
_LATIN = rf"((?:{_AFTER}|(?<=[.!?]\s[»›]))\s++{_NOT_ON})"
"""May lie between two sentences, see `_ends`."""
_WIDE = "。！？｡．"
"""End a sentence without a blank after them."""
_CLOSING = "」』”’）】》〉〕］"
_THAI, _LAO = r"\u0e01-\u0e45\u0e47-\u0e4e", r"\u0e81-\u0ec4\u0ec8-\u0ecd"
"""Without the signs that repeat a word (Thai ๆ, Lao ໆ), which stand between blanks."""
_BARS, _OTHERS = "।॥။។", "؟۔։።፧"
_ON = rf"(?![{_WIDE}{_CLOSING}]|\Z)"
"""Not before another end, nor at the end of all."""
_WAYS = (
    _PLAIN,
    _LATIN,
    rf"(?<=[{_WIDE}])(?<![0-9０-９]．(?=[0-9０-９])){_ON}",
    *(rf"(?<=[{_WIDE}]{f'[{_CLOSING}]' * closed})(?!と){_ON}" for closed in (1, 2)),
    rf"(?<=[{_BARS}])\s*(?!\s|[{_BARS}]|\Z)",
    rf"(?<=[{_OTHERS}])\s+",
    rf"(?<=[{_THAI}]) +(?=[{_THAI}])",
    rf"(?<=[{_LAO}]) +(?=[{_LAO}])",
)
_FIRST = rf"(?<=[.!?{re.escape(_SHUT)}{_WIDE}{_CLOSING}{_BARS}{_OTHERS}{_THAI}{_LAO}])"
"""For speed alone."""
_GAP = rf"{_FIRST}(?:{'|'.join(_WAYS)})"
_GAPS = re.compile(_GAP)
_GAPS_AND_LINES = re.compile(rf"{_GAP}|(?<!\s)\s*\n\s*")
_NEAR = 40
"""Characters before an end that tell of it."""
_NUMBER = re.compile(r"\d{1,3}(?:\.\d+){0,3}|[^\W\d_]|[ivx]{1,4}|[IVX]{1,4}")
"""Of an item of a list."""
_AROUND_NUMBERS = rf" \t\r*+>#-.{_OPEN}{_SHUT}"
_ORDINAL = re.compile(r"[0-9]{1,2}")
_NAMED = re.compile(r"[\w-]*[0-9A-Z]")
"""Begins a word that a sentence may begin with, though in a small letter: p53, siRNA."""
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")
_WORDS = re.compile(r"(\w+)(\.?)")


def sentence_gaps(text: str, *, lines: bool = False) -> Iterator[tuple[int, int]]:
    """Yield what lies between two sentences: the blanks there, or nothing where none are written.

    A quotation that ends stays with its sentence, and goes on after it where Japanese says so (と).
    Thai and Lao have no marks at the end of a sentence: there a blank ends a clause. A full stop
    ends no sentence after the number of a list's item, after initials and abbreviations; nor does
    any mark before a word in small letters, unless the text has no others.

    Args:
        text: of any length.
        lines: whether a line's end closes a sentence too.

    Yields:
        the first character and one past the last, in order.
    """
    small, begin = text.islower(), 0
    for gap in (_GAPS_AND_LINES if lines else _GAPS).finditer(text):
        start, end = place = gap.span()
        doubt = gap.lastindex  # of the groups, _PLAIN is 1 and _LATIN 2
        if (
            doubt is None
            or (doubt == 1 and text[start - 4 : start - 1] not in TAILS)
            or (lines and "\n" in gap[0])
            or _ends(text, begin, start, end, small)
        ):
            yield place
            begin = end


def _ends(text: str, begin: int, start: int, end: int, small: bool) -> bool:
    """Tell whether a sentence ends where a mark stands before a blank.

    Args:
        text: all of it.
        begin: the first character of the sentence.
        start: of the blank.
        end: one past the blank.
        small: whether the text has small letters alone.
    """
    while end < len(text) and text[end] in _OPEN:
        end += 1
    if text[end : end + 1].islower() and not small and not _NAMED.match(text, end):
        return False
    near = text[max(begin, start - _NEAR) : start]
    words = near.rstrip(_SHUT).rsplit(None, 2)
    if not words:  # signs alone, whose mark stands on the line above
        return False
    word = words[-1].lstrip(_OPEN)
    if not word.rstrip(".!?"):
        return word == words[-1]  # else a mark in brackets, which speaks of a word: (?)
    name = word[:-1]
    if name.lower() not in UNENDING:
        name = name.rpartition("-")[2]  # Dipl.-Ing., J.-P.
    if word[-1] != "." or not 0 < len(name) <= LONGEST:
        return True
    if _NUMBER.fullmatch(name):
        _, above, line = near.rpartition("\n")
        if (above or begin + len(near) == start) and line.strip(_AROUND_NUMBERS) == name:
            return False
    before = words[-2].lstrip(_OPEN).lower() if len(words) > 1 else ""
    return _is_whole(name, before, _WORDS.match(text, end), small)


def _is_whole(name: str, before: str, after: re.Match[str] | None, small: bool) -> bool:
    """Tell whether a full stop ends a sentence after a word.

    Args:
        name: the word.
        before: what stands before it, in small letters.
        after: the word that follows, and a full stop if it has one; None: a sign follows.
        small: whether the text has small letters alone.
    """
    key = name.lower()
    first, stop = (after[1].lower(), after[2]) if after else ("", "")
    if key in UNENDING or (before.endswith(".") and before + key in UNENDING):
        return False
    starts = first in FIRST_WORDS and not stop
    if (key in TITLES or (key in RANKS and not starts)) and (small or name[0].isupper()):
        return False
    if first[:1].isdigit() and key in BEFORE_NUMBERS:
        return False
    if first in CONTINUED.get(key, ()) or (_ORDINAL.fullmatch(name) and first in MONTHS):
        return False
    if not first[:1].isalpha() or not _INITIALS.fullmatch(name):
        return True
    if key in WHOLE:
        return not small
    if name.isupper() or small:
        return starts or before[-1:].isdigit()  # of a unit: 5 M
    return len(first) > 1 or not stop  # one with a full stop: as in z. B.
