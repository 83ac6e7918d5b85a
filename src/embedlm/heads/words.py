"""A text's own words: lower case, without stop words and punctuation."""

from __future__ import annotations

import re
import string

__all__ = ["STOP_WORDS", "valid_words"]

_WORD = re.compile(r"\w+|[^\w\s]")
_PUNCTUATION = frozenset(string.punctuation)

_SHORT = """
a about after against an and any are as at because been before being below between but by can did
do does doing don down during for from further here how i if in is just me my nor not now of off on
once only or our out same so some such than the their them then there these they this those through
to too under until up very was we were what when where which while who whom why will you your
"""
_MORE = """
all am be both each few had has have having he her hers herself him himself his into it its itself
more most myself no other ours ourselves over own s she should t that theirs themselves with yours
yourself yourselves d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn
needn shan shouldn wasn weren won wouldn again above
"""
STOP_WORDS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "short": frozenset(_SHORT.split()),
    "english": frozenset((_SHORT + _MORE).split()),
}
"""Lists by name; `english` adds pronouns, auxiliaries and fragments of contractions."""


def valid_words(text: str, stop_words: str = "short") -> list[str]:
    """Return the words of a text that may stand for it, in order and with repeats.

    Signs that are no ASCII punctuation count as words: emoji, for one.
    """
    stop = STOP_WORDS[stop_words]
    return [
        word
        for word in _WORD.findall(text.lower())
        if word not in stop and word not in _PUNCTUATION
    ]
