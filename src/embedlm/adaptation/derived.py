"""Queries that documents give without a language model, in six kinds.

    title           the document's title; the passage is its first chunk without the title
    heading         the section's heading (with the title where it is short); passage without it
    first_sentence  the chunk's first sentence, which is taken out of the passage
    cloze           another sentence, taken out likewise (inverse cloze; Lee et al., arXiv
                    1906.00300)
    keywords        the chunk's words of the highest tf * idf, as typed into a search box
    question        a question about the chunk's most telling phrase

What is taken out of the passage makes a query that cannot be answered by equal words alone. Kinds
are mixed, since a model that learns from one kind gets worse at the others (CADET, arXiv
2505.19274).
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from embedlm.adaptation.chunks import Chunk
from embedlm.adaptation.questions import QUESTIONS, Words
from embedlm.adaptation.terms import repeated, spelt, terms_in
from embedlm.data.words import runs_of, word_count, words_of
from embedlm.search.chunks import sentence_spans

__all__ = ["Query", "WordCounts", "derived"]

_SENTENCE = (5, 40)
"""Words of a sentence that is a query."""
_LEFT = 8
"""Words that a passage must keep where a sentence is taken out of it."""
_KEYWORDS = (3, 6)
_PHRASE = (2, 3)
_COMMON = 0.2
"""Share of the chunks in which a word may stand that begins or ends a phrase."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the passage that answers it."""

    text: str
    kind: str
    chunk: Chunk
    passage: str
    """The chunk's, without what became the query."""

    @property
    def document(self) -> str:
        """The id of the document."""
        return self.chunk.document


class WordCounts:
    """In how many chunks each word stands, and what documents without blanks repeat."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.total = len(chunks)
        self.counts: Counter[str] = Counter()
        self.terms: dict[str, list[str]] = {}
        self.languages: dict[str, str | None] = {}
        documents: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            self.counts.update(set(words_of(chunk.passage)))
            documents.setdefault(chunk.document, []).append(chunk)
        found = {id: Words(chunk.passage for chunk in own) for id, own in documents.items()}
        around = Words()
        for words in found.values():
            around.add(words)
        for id, own in documents.items():
            self.languages[id] = found[id].language(around)
            texts = [chunk.text for chunk in own]
            self.terms[id] = repeated(texts) if found[id].signs else []
            for text in texts if self.terms[id] else ():
                self.counts.update(terms_in(text, self.terms[id]).keys())
        self._terms = frozenset(term for own in self.terms.values() for term in own)

    def idf(self, word: str) -> float:
        """Return log(1 + (N - n + 0.5) / (n + 0.5)), as BM25 weighs words."""
        count = self.counts[word]
        return math.log(1 + (self.total - count + 0.5) / (count + 0.5))

    def is_term(self, word: str) -> bool:
        """Tell whether a word is a term of a script without blanks."""
        return word in self._terms

    def rare(self, word: str) -> bool:
        """Tell whether a word says what a chunk is about."""
        common = self.counts[word] > max(1, _COMMON * self.total)
        long = len(word) > 2 or self.is_term(word)
        return long and not common and not word.isdecimal()

    def told(self, chunk: Chunk) -> dict[str, float]:
        """Return tf * idf of a chunk's words, and of its terms where no blanks part words."""
        words = Counter(run for run in runs_of(chunk.text) if isinstance(run, str))
        words.update(terms_in(chunk.text, self.terms[chunk.document]))
        return {word: n * self.idf(word) for word, n in words.items() if self.rare(word)}


def derived(chunks: Sequence[Chunk], kinds: Sequence[str], each: int, seed: int) -> Iterator[Query]:
    """Yield up to so many queries of each chunk, of kinds that are drawn by the seed and its id."""
    counts = WordCounts(chunks)
    for chunk in chunks:
        rng = random.Random(f"{seed}\0{chunk.id}")
        found = []
        for kind in kinds:
            if kind in MAKERS and (made := MAKERS[kind](chunk, counts, rng)) is not None:
                found.append(Query(made[0], kind, chunk, made[1]))
        yield from rng.sample(found, min(each, len(found)))


Made = tuple[str, str] | None


def _title(chunk: Chunk, _: WordCounts, __: random.Random) -> Made:
    if chunk.number or word_count(chunk.title) < 2:
        return None
    heading = f"{chunk.heading} " if chunk.heading else ""
    return chunk.title, f"{heading}{chunk.text}"


def _heading(chunk: Chunk, _: WordCounts, __: random.Random) -> Made:
    if not chunk.heading:
        return None
    short = word_count(chunk.heading) < 3
    return (f"{chunk.title} {chunk.heading}" if short else chunk.heading), chunk.text


def _sentences(chunk: Chunk) -> list[str]:
    return [chunk.text[start:end] for start, end in sentence_spans(chunk.text)]


def _taken_out(chunk: Chunk, sentence: str) -> Made:
    low, high = _SENTENCE
    words = word_count(sentence)
    if not low <= words <= high or word_count(chunk.text) - words < _LEFT:
        return None
    return sentence, chunk.without(sentence)


def _first_sentence(chunk: Chunk, _: WordCounts, __: random.Random) -> Made:
    sentences = _sentences(chunk)
    return _taken_out(chunk, sentences[0]) if len(sentences) > 1 else None


def _cloze(chunk: Chunk, _: WordCounts, rng: random.Random) -> Made:
    later = [made for one in _sentences(chunk)[1:] if (made := _taken_out(chunk, one)) is not None]
    return rng.choice(later) if later else None


def _keywords(chunk: Chunk, counts: WordCounts, rng: random.Random) -> Made:
    weight = counts.told(chunk)
    best: list[str] = []
    most = rng.randint(*_KEYWORDS)
    for word in sorted(weight, key=lambda word: (-weight[word], word)):
        inside = counts.is_term(word) and any(word in one or one in word for one in best)
        if len(best) < most and not inside:
            best.append(word)
    if word_count(" ".join(best)) < _KEYWORDS[0]:
        return None
    runs = ["".join(run) for run in runs_of(chunk.text)]

    def place(word: str) -> tuple[int, int]:
        at = runs.index(word) if word in runs else next(i for i, r in enumerate(runs) if word in r)
        return at, runs[at].index(word)

    return spelt(" ".join(sorted(best, key=place))), chunk.passage


def _question(chunk: Chunk, counts: WordCounts, rng: random.Random) -> Made:
    language = counts.languages[chunk.document]
    if language is None:
        return None
    weight = _phrases(chunk, counts) if language == "en" else counts.told(chunk)
    if not weight:
        return None
    best = min(weight, key=lambda phrase: (-weight[phrase], phrase))
    return rng.choice(QUESTIONS[language]).format(phrase=spelt(best)), chunk.passage


def _phrases(chunk: Chunk, counts: WordCounts) -> dict[str, float]:
    """Return the weights of a chunk's phrases."""
    phrases: Counter[str] = Counter()
    for sentence in _sentences(chunk):
        for run in re.split(r"[^\w\s'-]+", sentence):
            words = words_of(run)
            for size in range(_PHRASE[0], _PHRASE[1] + 1):
                for at in range(len(words) - size + 1):
                    part = words[at : at + size]
                    if counts.rare(part[0]) and counts.rare(part[-1]):
                        phrases[" ".join(part)] += 1

    def weight(phrase: str) -> float:
        parts = phrase.split()
        return phrases[phrase] * sum(counts.idf(word) for word in parts) / math.sqrt(len(parts))

    return {phrase: weight(phrase) for phrase in phrases}


MAKERS: dict[str, Callable[[Chunk, WordCounts, random.Random], Made]] = {
    "title": _title,
    "heading": _heading,
    "first_sentence": _first_sentence,
    "keywords": _keywords,
    "cloze": _cloze,
    "question": _question,
}
"""Query and passage of a chunk, or None where it has none of the kind."""
