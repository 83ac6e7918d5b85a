"""Mined negatives judged by language models: RLHN and ARHN.

RLHN (Thakur et al., arXiv 2505.16967): a model is shown the question, the known positives (the
ground truth) and the numbered negatives, and says which are as good. With two models the first one
flags and the second, stronger one judges again what was flagged. More than 8 false negatives: the
record is set aside. ARHN (arXiv 2604.11092): a snippet that answers is copied from each passage,
and all passages are put in order; what stands above the known positives becomes a positive, what
stands below and holds an answer is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from embedlm.generation import Cache, Generator
from embedlm.mining.judging import (
    ask_for,
    block_of,
    filled,
    numbered,
    numbers_of,
    shown,
    snippet_of,
)

__all__ = ["METHODS", "MODES", "Question", "Verdict", "judge"]

METHODS = ("rlhn", "arhn")
MODES = ("relabel", "remove", "drop")
"""False negatives become positives, are removed, or the record that has any is set aside."""
MOST = 8
"""False negatives of a record that is kept at most: the threshold of RLHN's own code."""


@dataclass(frozen=True, slots=True)
class Question:
    """A query with its positives and the negatives to be judged."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge found, as places among the negatives."""

    positive: frozenset[int] = field(default_factory=frozenset)
    """They answer the query."""
    removed: frozenset[int] = field(default_factory=frozenset)
    """They answer it in part: neither a positive nor a negative."""


def judge(
    questions: Sequence[Question],
    llms: Sequence[Generator],
    cache: Cache,
    method: str,
    seed: int,
) -> list[Verdict | None]:
    """Return the verdict on each question; None where an answer could not be read twice."""
    asked = [i for i, question in enumerate(questions) if question.negatives]
    verdicts: list[Verdict | None] = [Verdict() for _ in questions]
    found = (_ordered if method == "arhn" else _flagged)(
        [questions[i] for i in asked], llms, cache, seed
    )
    for i, verdict in zip(asked, found, strict=True):
        verdicts[i] = verdict
    return verdicts


# -- RLHN -------------------------------------------------------------------------------------


def _flagged(
    questions: Sequence[Question], llms: Sequence[Generator], cache: Cache, seed: int
) -> list[Verdict | None]:
    """Ask the first model about all negatives, each next one about those still flagged."""
    flagged: list[list[int] | None] = [list(range(len(one.negatives))) for one in questions]
    for llm in llms:
        prompts = {
            i: _rlhn_prompt(questions[i], places) for i, places in enumerate(flagged) if places
        }

        def read(i: int, answer: str) -> list[int] | None:
            return _better(answer, flagged[i] or [])

        found = ask_for(llm, cache, prompts, read, seed)
        for i in prompts:
            flagged[i] = found.get(i)
    return [None if places is None else Verdict(frozenset(places)) for places in flagged]


def _rlhn_prompt(question: Question, places: Sequence[int]) -> str:
    return filled(
        "rlhn",
        query=question.query,
        truth="\n\n".join(map(shown, question.positives)),
        passages=numbered([question.negatives[place] for place in places]),
        count=len(places),
    )


def _better(answer: str, places: Sequence[int]) -> list[int] | None:
    """Return the places of the passages that an answer calls better; None: another form.

    Every number must be in one of the two lists: one that was left out was not judged.
    """
    verdict = block_of(answer, "verdict")
    better = numbers_of(block_of(verdict or "", "better"))
    worse = numbers_of(block_of(verdict or "", "worse"))
    if better is None or worse is None:
        return None
    if sorted([*better, *worse]) != list(range(1, len(places) + 1)):
        return None
    return [places[number - 1] for number in sorted(better)]


# -- ARHN -------------------------------------------------------------------------------------


def _ordered(
    questions: Sequence[Question], llms: Sequence[Generator], cache: Cache, seed: int
) -> list[Verdict | None]:
    """Ask the first model for snippets, and the last one for the order."""
    asked = {
        (i, place): filled("snippet", query=one.query, passage=shown(text))
        for i, one in enumerate(questions)
        for place, text in enumerate(one.negatives)
    }
    snippets = ask_for(llms[0], cache, asked, lambda _, answer: snippet_of(answer), seed)
    prompts = {
        i: filled(
            "order",
            query=one.query,
            passages=numbered([*one.positives, *one.negatives]),
            count=len(one.positives) + len(one.negatives),
        )
        for i, one in enumerate(questions)
    }

    def read(i: int, answer: str) -> list[int] | None:
        count = len(questions[i].positives) + len(questions[i].negatives)
        order = numbers_of(block_of(answer, "order"))
        return order if order and sorted(order) == list(range(1, count + 1)) else None

    orders = ask_for(llms[-1], cache, prompts, read, seed)
    verdicts: list[Verdict | None] = []
    for i, one in enumerate(questions):
        holds = [snippets.get((i, place)) for place in range(len(one.negatives))]
        if i not in orders or None in holds:
            verdicts.append(None)
            continue
        first = min(orders[i].index(number + 1) for number in range(len(one.positives)))
        places = range(len(one.negatives))
        rank = {place: orders[i].index(len(one.positives) + place + 1) for place in places}
        above = frozenset(place for place in places if rank[place] < first)
        below = frozenset(place for place in places if holds[place] and place not in above)
        verdicts.append(Verdict(above, below))
    return verdicts
