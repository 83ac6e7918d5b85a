"""From ranked lists to negatives: known documents and filtered ones are left out, k are taken.

A list is read to the depth that will do for most queries; where too few candidates are left, it is
read four times deeper, until k are found or the window or the corpus ends.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.mining.filters import KEPT, Filters, reasons
from embedlm.mining.rankings import Block, Rankings

__all__ = ["Candidate", "Choice", "Request", "Rules", "choose"]

Places = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_EXAMPLES = 3
"""Dropped candidates of each rule and query that a choice keeps as examples."""
_DEEPER = 4
_SPARE = 10
"""Candidates that are read at first for each one wanted, where a filter may drop some."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How negatives are taken from a list."""

    k: int
    filters: Filters
    first: int = 1
    """The first rank of the window."""
    last: int | None = None
    """The last rank of the window; None: the end of the list."""
    sample: int | None = None
    """Negatives are drawn from so many candidates that are left; None: the hardest are taken."""
    seed: int = 0
    reserve: int = 0
    """Candidates that are kept besides, to take the place of those that a judge removes."""

    @property
    def wanted(self) -> int:
        """Candidates to be found."""
        return max(self.k, self.sample or 0) + self.reserve


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage in the list of a query."""

    place: int
    """In the corpus."""
    rank: int
    score: float


@dataclass(slots=True)
class Request:
    """A query, and what is known of it."""

    row: int
    """In its block."""
    known: Mapping[int, str]
    """Places that are no candidates, and why."""
    positive: float
    """s+, the least score of its positives."""
    positive_places: Sequence[int | None]
    """Where each of the record's positives is; None: not in the corpus."""
    positive_scores: Sequence[float]
    veto: float | None = None
    """The largest logit of a re-ranker that a negative may have."""


@dataclass(slots=True)
class Choice:
    """What was found for a query."""

    taken: list[Candidate] = field(default_factory=list)
    """k negatives, or as many as there are, in the order of the list."""
    reserve: list[Candidate] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Candidates before the last one that was needed, by the rule that dropped them."""
    examples: dict[str, list[Candidate]] = field(default_factory=dict)
    positive_ranks: list[int | None] = field(default_factory=list)
    """The rank of each positive; None: beyond what was read."""
    depth: int = 0


def choose(
    rankings: Rankings, block: Block, requests: Sequence[Request], rules: Rules
) -> list[Choice]:
    """Return the negatives of each query of a block."""
    limit = min(rules.last or len(rankings.corpus), len(rankings.corpus))
    depth = min(_first_depth(requests, rules), max(limit, rules.filters.consistency or 0))
    depth = max(1, min(depth, len(rankings.corpus)))
    choices: dict[int, Choice] = {}
    starving = list(requests)
    while starving:
        rows = np.array([request.row for request in starving], dtype=np.int64)
        places_RK, scores_RK = rankings.best(block, rows, depth)
        again = []
        for request, places_K, scores_K in zip(starving, places_RK, scores_RK, strict=True):
            places_K = places_K[places_K >= 0]
            choice = _choice(rankings, block, request, places_K, scores_K[: len(places_K)], rules)
            choice.depth = depth
            choices[request.row] = choice
            ended = len(places_K) < depth or depth >= limit
            if len(choice.taken) + len(choice.reserve) < rules.wanted and not ended:
                again.append(request)
        starving, depth = again, min(depth * _DEEPER, limit)
    for request in requests:
        _draw(choices[request.row], rules, block.queries[request.row])
    return [choices[request.row] for request in requests]


def _first_depth(requests: Sequence[Request], rules: Rules) -> int:
    """Return the depth that will do for most queries."""
    filters = rules.filters.given()
    spare = _SPARE if filters.keys() - {"shift", "consistency"} else 1
    before = max(rules.first - 1, rules.filters.shift or 0)
    known = max((len(request.known) for request in requests), default=0)
    return max(before + known + rules.wanted * spare, rules.filters.consistency or 0)


def _choice(
    rankings: Rankings,
    block: Block,
    request: Request,
    places_K: Places,
    scores_K: Floats,
    rules: Rules,
) -> Choice:
    """Take candidates from one list, as far as it was read."""
    choice = Choice()
    choice.positive_ranks = _positive_ranks(request, places_K, scores_K)
    why_K = reasons(rules.filters, scores_K, request.positive, rules.first).tolist()
    end = len(places_K) if rules.last is None else min(rules.last, len(places_K))
    at = 0
    for at in range(end):
        if len(choice.taken) >= rules.wanted:
            break
        candidate = Candidate(int(places_K[at]), at + 1, float(scores_K[at]))
        why = request.known.get(candidate.place, why_K[at])
        if why == KEPT and request.veto is not None:
            why = _vetoed(rankings, block, request, places_K[at:end], why_K[at:end], rules)
        if why == KEPT:
            choice.taken.append(candidate)
            continue
        choice.dropped[why] += 1
        if len(examples := choice.examples.setdefault(why, [])) < _EXAMPLES:
            examples.append(candidate)
    return choice


def _vetoed(
    rankings: Rankings,
    block: Block,
    request: Request,
    places_K: Places,
    why_K: Sequence[str],
    rules: Rules,
) -> str:
    """Return whether a re-ranker drops the first of some candidates."""
    place = int(places_K[0])
    if (request.row, place) not in block.reranked:  # read with those that come next
        ahead = [
            int(p)
            for p, why in zip(places_K[: 2 * rules.wanted], why_K, strict=False)
            if why == KEPT and int(p) not in request.known
        ]
        rankings.rerank_scores(block, request.row, np.array(ahead[: rules.wanted]))
    assert request.veto is not None
    return "veto" if block.reranked[request.row, place] > request.veto else KEPT


def _positive_ranks(request: Request, places_K: Places, scores_K: Floats) -> list[int | None]:
    """Return the rank of each positive; outside the corpus, the one that its score would give."""
    ranks: list[int | None] = []
    for place, score in zip(request.positive_places, request.positive_scores, strict=True):
        if place is None:
            rank = int(np.count_nonzero(scores_K > np.float32(score))) + 1
            ranks.append(rank if rank <= len(places_K) else None)
        else:
            found = np.flatnonzero(places_K == place)
            ranks.append(int(found[0]) + 1 if len(found) else None)
    return ranks


def _draw(choice: Choice, rules: Rules, query: str) -> None:
    """Divide the candidates that are left into those taken and those in reserve."""
    left: list[Candidate] = choice.taken
    if rules.sample is None:
        choice.taken, choice.reserve = left[: rules.k], left[rules.k :]
        return
    pool = left[: rules.sample]
    generator = random.Random(f"{rules.seed}\0{query}")
    order: list[Any] = generator.sample(range(len(pool)), len(pool))
    choice.taken = [pool[i] for i in sorted(order[: rules.k])]
    choice.reserve = [*(pool[i] for i in order[rules.k :]), *left[rules.sample :]]
