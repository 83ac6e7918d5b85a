"""The words of a text, for whatever compares words: BM25, copies, leaks, duplicates.

A word is a run of letters, digits and the marks that belong to them (vowel signs of Hindi and Thai
are marks). Scripts that write no blanks between words (Chinese, Japanese, Thai, Lao, Burmese,
Khmer) have no such runs, nor has Korean, whose particles are written on to the words: there each
sign, with its marks, stands alone, also beside Latin letters and digits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

__all__ = ["first_words", "folded", "runs_of", "script_of", "sign_words", "word_count", "words_of"]

_SIGNS = (
    r"\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6"
    r"\u1000-\u102a\u1780-\u17b3\u17d7\u17dc"
    r"\u3005-\u3007\u3040-\u3098\u309b-\u30ff\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
"""Letters of scripts without blanks, and Korean syllables."""
_SIGNS_OF_A_WORD = {"kana": 2.5, "Han": 1.7, "Hangul": 2.0, "alphabet": 4.0}
"""Signs of a word on average; alphabets are those of Thai, Lao, Burmese and Khmer."""
_PLAIN = re.compile(r"[^\W_]+")
_POINTS = re.compile(
    r"[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670"
    r"\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]"
)
"""Vowels of Hebrew and Arabic, which most texts leave out, and what only stretches a word."""


def folded(text: str) -> str:
    """Return a text without what one word may be written with and without.

    Case, forms of one character (wide, composed, ligature), vowel points of Hebrew and Arabic.
    """
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _POINTS.sub("", text.replace("i\u0307", "i"))  # the dot that Turkish I has


def runs_of(text: str) -> Iterator[str | list[str]]:
    """Yield the words of a text, folded; the signs of a run without blanks as a list."""
    text = folded(text)
    if text.isascii():
        yield from _PLAIN.findall(text)
        return
    run, sign = _patterns()
    for found in run.finditer(text):
        yield sign.findall(found[0]) if found[1] is None else found[0]


def words_of(text: str) -> list[str]:
    """Return the words of a text, folded; each sign of a script without blanks is one."""
    words: list[str] = []
    for run in runs_of(text):
        words += [run] if isinstance(run, str) else run
    return words


def word_count(text: str) -> int:
    """Return about how many words a text has, where `words_of` counts signs of scripts."""
    return round(sum(1.0 if isinstance(run, str) else sign_words(run) for run in runs_of(text)))


def sign_words(signs: Iterable[str]) -> float:
    """Return about how many words so many signs of scripts without blanks are."""
    return sum(1 / _SIGNS_OF_A_WORD[script_of(sign)] for sign in signs)


def first_words(text: str, count: int) -> str:
    """Return about so many words of a text's beginning, one blank between those that had some.

    What stands between blanks is one word, but in scripts that write none.
    """
    kept: list[str] = []
    total = 0.0
    for part in text.split():
        if total >= count:
            break
        size, end = (1.0, len(part)) if part.isascii() else _first_signs(part, count - total)
        kept.append(part[:end])
        total += size
    return " ".join(kept)


def _first_signs(part: str, count: float) -> tuple[float, int]:
    """Return about how many words a run of signs is, up to `count` of them, and where these end."""
    total = 0.0
    for sign in _patterns()[1].finditer(part):
        if total + 1e-9 >= count:
            return total, sign.start()
        total += sign_words([sign[0]])
    return total or 1.0, len(part)


def script_of(sign: str) -> str:
    """Return the kind of script of a sign: kana, Han, Hangul or alphabet (Thai, Lao, ...)."""
    code = sign[0]
    if code < "\u3000":
        return "alphabet"
    if "\u3040" <= code <= "\u31ff":
        return "kana"
    return "Hangul" if "\uac00" <= code <= "\ud7af" else "Han"


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of a run and of a sign; in a run the group 1 is a word with blanks."""
    marks = _marks()
    letters, sign = rf"[^\W_{_SIGNS}]", rf"[{_SIGNS}][{marks}]*"
    word = rf"[a-z0-9]++(?![^\x00-\x7f])|{letters}+(?:[{marks}]+{letters}*)*"  # the first for speed
    return re.compile(rf"({word})|(?:{sign})+"), re.compile(sign)


def _marks() -> str:
    """Return the marks that belong to the letter before them, as ranges of a pattern.

    Those that choose between two drawings of a sign (text or emoji) do not.
    """
    codes = [
        code
        for code in range(0x300, 0x1F000)
        if unicodedata.category(chr(code)) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F
    ]
    known = set(codes)
    starts = [code for code in codes if code - 1 not in known]
    ends = [code for code in codes if code + 1 not in known]
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in zip(starts, ends, strict=True))
