"""A text's own words: lower case, without stop words and punctuation."""

from __future__ import annotations

import re
import string

__all__ = ["STOP_WORDS", "valid_words"]

_WORD = re.compile(r"\w+|[^\w\s]")
_PUNCTUATION = frozenset(string.punctuation)

# Articles, conjunctions, prepositions, question words and their like.
_SHORT = """
a about above after against an and are as at because before below between but by did do does down
during for from here how if in is nor not of off on or out so than the then there these this those
through to too under until up very was were what when where which while who whom why
"""
# What the usual English lists add: pronouns, auxiliaries, quantifiers, and the pieces into which an
# apostrophe parts a contraction.
_MORE = """
again all am any be been being both can d doing don each few further had has have having he her hers
herself him himself his i into it its itself just ll m me more most my myself no now o once only
other our ours ourselves over own re s same she should some such t that their theirs them themselves
they ve we will with y you your yours yourself yourselves
ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won
wouldn
"""
STOP_WORDS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "short": frozenset(_SHORT.split()),
    "english": frozenset((_SHORT + _MORE).split()),
}
"""Lists by name; `english` is the one for PromptReps, whose authors take NLTK's."""


def valid_words(text: str, stop_words: str = "english") -> list[str]:
    """Return the words of a text that may stand for it, in order and with repeats.

    Only ASCII punctuation is dropped, as in the authors' code: an emoji counts as a word.
    """
    stop = STOP_WORDS[stop_words]
    return [
        word
        for word in _WORD.findall(text.lower())
        if word not in stop and word not in _PUNCTUATION
    ]
