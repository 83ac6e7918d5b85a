"""Terms of texts whose scripts write no blanks between words: what a document says again.

Where nothing parts the words, a run of signs that a document repeats is mostly one, or several that
belong together (the strings that keyphrase and new-word extraction begin with). Kept is what is
repeated and not always part of a longer repetition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from embedlm.data.words import runs_of, script_of, sign_words

__all__ = ["repeated", "spelt", "terms_in"]

_SIGNS = 12
"""Of a term, at most."""
_WORDS = (0.9, 4.0)
"""Words of a term, about."""
_BEFORE, _AFTER = "เแโใไເແໂໃໄ", "ะาำๅๆະາຳໆ"
"""Vowels that are written before their consonant or after it: a syllable is not divided."""
_BOUND = frozenset(
    "的了是在和与與或及把被将將从從对對于於为為以而并並也都就很这這那其个個些么吗呢吧们們之所"
)
"""Signs of Chinese that words for things neither begin nor end with."""


def repeated(texts: Iterable[str]) -> list[str]:
    """Return the terms that texts of one document hold at least twice, in order of appearance."""
    rows = [units for text in texts for units in _unit_runs(text)]
    kept: dict[tuple[str, ...], int] = {}
    shorter: Counter[tuple[str, ...]] = Counter((unit,) for row in rows for unit in row)
    for size in range(2, _SIGNS + 1):
        found = Counter(
            gram
            for row in rows
            for at in range(len(row) - size + 1)
            if shorter[(gram := tuple(row[at : at + size]))[:-1]] > 1 < shorter[gram[1:]]
        )
        grams = Counter({gram: count for gram, count in found.items() if count > 1})
        for gram, count in grams.items():
            for part in (gram[:-1], gram[1:]):
                if kept.get(part) == count:
                    del kept[part]
        if not grams:
            break
        kept.update(grams)
        shorter = grams
    terms = ["".join(gram) for gram in kept if _is_term(gram)]
    korean = ["".join(row[:_SIGNS]) for row in rows if script_of(row[0]) == "Hangul"]
    starts = {row[:size] for row in korean for size in range(1, len(row) + 1)}
    return [term for term in terms if script_of(term) != "Hangul" or term in starts]


def spelt(term: str) -> str:
    """Return a folded term as it is written: folding divides a vowel of Thai and of Lao."""
    return term.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3")


def terms_in(text: str, terms: Iterable[str]) -> dict[str, int]:
    """Return how often each of some terms stands in a text, without those that do not."""
    runs = ["".join(units) for units in _unit_runs(text)]
    counts = {term: sum(run.count(term) for run in runs) for term in terms}
    return {term: count for term, count in counts.items() if count}


def _unit_runs(text: str) -> Iterator[list[str]]:
    """Yield the runs of a text without blanks, in signs; those of a syllable are one."""
    for run in runs_of(text):
        if isinstance(run, str):
            continue
        units: list[str] = []
        for sign in run:
            if units and (sign[0] in _AFTER or units[-1] in _BEFORE):
                units[-1] += sign
            else:
                units.append(sign)
        yield units


def _is_term(units: Sequence[str]) -> bool:
    low, high = _WORDS
    if not low <= sign_words(sign for run in runs_of("".join(units)) for sign in run) <= high:
        return False
    return not any(end in _BOUND or _hiragana(end) for end in (units[0], units[-1]))


def _hiragana(unit: str) -> bool:
    """Tell whether a unit is a particle of Japanese, or an ending."""
    return script_of(unit) == "kana" and unit[0] < "\u30a0"
