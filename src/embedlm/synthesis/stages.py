"""The steps of a pipeline as stages: each takes items in order and says what became of each.

A stage that looks at one item at a time goes on after a kill where it was. One that compares items
(duplicates, the best N) starts over; it asks no model.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from embedlm.data.duplicates import Duplicates
from embedlm.errors import InputError
from embedlm.evaluation.contamination import HeldOut
from embedlm.generation import Cache, Generator, Spent, converse
from embedlm.generation.generator import batches
from embedlm.schema.pipeline import Deduplicate, Filter, PairLabels, Pipeline
from embedlm.synthesis.asking import Asker, Outcome
from embedlm.synthesis.checks import check_item
from embedlm.synthesis.items import Item, fill, seed_of
from embedlm.synthesis.writing import record_of

__all__ = ["BLOCK", "Stage", "Tools", "make_stages", "needs"]

Outcomes = Iterator[Outcome]


@dataclass(slots=True)
class Tools:
    """What stages stand on."""

    pipeline: Pipeline
    seed: int
    cache: Cache
    writer: Generator | None = None
    ranker: Any = None
    """A `search.Ranker` of the corpus."""
    reranker: Any = None
    held_out: HeldOut = field(default_factory=HeldOut)
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a pipeline."""

    name: str
    run: Callable[[Iterable[Item]], Outcomes]
    alone: bool = True
    """Whether what becomes of an item depends on it alone."""
    light: bool = False
    """Whether it is a function of an item that asks no model: it runs along with the one before."""


def needs(pipeline: Pipeline) -> set[str]:
    """Return which of llm, corpus and reranker a pipeline needs."""
    found: set[str] = set()
    for step in pipeline.steps:
        if step.kind in ("generate", "relabel"):
            found.add("llm")
        by = step.by if step.kind == "filter" else ""
        if step.kind in ("relabel", "retrieve") or by == "round_trip":
            found.add("corpus")
        if by == "similarity":
            found.add("model")
        if by == "reranker":
            found.add("reranker")
    return found


def make_stages(tools: Tools) -> list[Stage]:
    """Return the stages of a pipeline, in order."""
    return [stage for step in tools.pipeline.steps for stage in _STAGES[step.kind](step, tools)]


def _each(step: Any, one: Callable[[Item], Outcome]) -> list[Stage]:
    return [Stage(step.name, lambda items: map(one, items), light=True)]


def _generate(step: Any, tools: Tools) -> list[Stage]:
    asker = Asker(step, tools.seed)

    def run(items: Iterable[Item]) -> Outcomes:
        assert tools.writer is not None
        conversations = (asker.conversation(item) for item in items)
        return converse(tools.writer, conversations, tools.cache, tools.spent)

    return [Stage(step.name, run)]


def _check(step: Any, tools: Tools) -> list[Stage]:
    return _each(step, lambda item: check_item(step, item, tools.held_out))


def _deduplicate(step: Deduplicate, tools: Tools) -> list[Stage]:
    def run(items: Iterable[Item]) -> Outcomes:
        known = Duplicates(step.threshold, step.run)
        for item in items:
            other = known.like(fill(step.text, item), item["id"])
            reason = f"{step.name}: like the one of {other}"
            yield Outcome([item]) if other is None else Outcome(aside=[(reason, item)])

    return [Stage(step.name, run, alone=False)]


# -- filters --------------------------------------------------------------------------------------


def _filter(step: Filter, tools: Tools) -> list[Stage]:
    """Return a stage that scores, where scores cost something, and one that selects."""
    if step.by == "round_trip":
        return [Stage(step.name, lambda items: _round_trip(step, tools, items))]
    name = {"logprob": "logprob", "field": step.field}.get(step.by, "score")
    score = {"reranker": _reranked, "similarity": _similar}.get(step.by)
    scoring = (
        []
        if score is None
        else [Stage(f"{step.name}.score", lambda items: score(step, tools, items))]
    )
    if step.keep is None:
        return [*scoring, *_each(step, lambda item: _enough(step, item, name))]
    return [*scoring, Stage(step.name, lambda items: _best(step, items, name), alone=False)]


def _enough(step: Filter, item: Item, name: str) -> Outcome:
    if step.least is None or float(item[name]) >= step.least:
        return Outcome([item])
    return Outcome(aside=[(f"{step.name}: {name} {item[name]}, below {step.least}", item)])


def _best(step: Filter, items: Iterable[Item], name: str) -> Outcomes:
    assert step.keep is not None
    scored = ((float(item[name]), -place) for place, item in enumerate(items))
    if step.least is not None:
        scored = ((score, place) for score, place in scored if score >= step.least)
    chosen = {-place for _, place in heapq.nlargest(step.keep, scored)}
    for place, item in enumerate(items):
        reason = f"{step.name}: {name} {item[name]}, not among the best {step.keep:,}"
        yield Outcome([item]) if place in chosen else Outcome(aside=[(reason, item)])


BLOCK = 64
"""Items whose texts a model reads at once."""


def _round_trip(step: Filter, tools: Tools, items: Iterable[Item]) -> Outcomes:
    assert step.rank is not None
    for block in batches(items, BLOCK):
        queries = [fill(step.query, item) for item in block]
        found = tools.ranker.best(queries, step.rank)
        for item, ranked in zip(block, found, strict=True):
            if tools.ranker.key(fill(step.passage, item)) in [hit.key for hit in ranked]:
                yield Outcome([item])
            else:
                reason = f"{step.name}: its passage is not among the first {step.rank}"
                yield Outcome(aside=[(reason, item)])


def _reranked(step: Filter, tools: Tools, items: Iterable[Item]) -> Outcomes:
    for block in batches(items, BLOCK):
        pairs = [(fill(step.query, item), fill(step.passage, item)) for item in block]
        scores = tools.reranker.predict(pairs, probability=False)
        for item, score in zip(block, scores.tolist(), strict=True):
            yield Outcome([{**item, "score": round(score, 6)}])


def _similar(step: Filter, tools: Tools, items: Iterable[Item]) -> Outcomes:
    for block in batches(items, BLOCK):
        pairs = [(fill(step.query, item), fill(step.passage, item)) for item in block]
        for item, score in zip(block, tools.ranker.similarity(pairs), strict=True):
            yield Outcome([{**item, "score": round(score, 6)}])


# -- what a search finds --------------------------------------------------------------------------


def _retrieve(step: Any, tools: Tools) -> list[Stage]:
    def run(items: Iterable[Item]) -> Outcomes:
        for block in batches(items, BLOCK):
            queries = [fill(step.query, item) for item in block]
            found = tools.ranker.best(queries, step.first + step.count)
            for item, ranked in zip(block, found, strict=True):
                own = tools.ranker.key(fill(step.besides, item))
                others = [hit.text for hit in ranked if hit.key != own]
                texts = others[step.first - 1 :][: step.count]
                if texts:
                    yield Outcome([{**item, step.into: texts}])
                else:
                    yield Outcome(aside=[(f"{step.name}: the search finds nothing", item)])

    return [Stage(step.name, run)]


def _relabel(step: Any, tools: Tools) -> list[Stage]:
    from embedlm.synthesis.relabel import relabelled

    return [Stage(step.name, lambda items: relabelled(step, tools, items))]


# -- labels, and the end --------------------------------------------------------------------------


def _pair_labels(step: PairLabels, tools: Tools) -> list[Stage]:
    def run(items: Iterable[Item]) -> Outcomes:
        by_label: dict[str, list[str]] = {}
        for item in items:
            by_label.setdefault(str(item[step.label]), []).append(str(item[step.text]))
        if len(by_label) < 2:
            raise InputError(f"all texts have one label; {step.kind} needs two labels or more")
        for item in items:
            rng = random.Random(seed_of(tools.seed, step.name, item["id"]))
            text, label = str(item[step.text]), str(item[step.label])
            same = [one for one in by_label[label] if one != text]
            if not same:
                yield Outcome(aside=[(f"{step.name}: no other text has the label {label}", item)])
                continue
            other = rng.choice([one for one in by_label if one != label])
            pair = {"positive": rng.choice(same), "negative": rng.choice(by_label[other])}
            yield Outcome([{**item, **pair}])

    return [Stage(step.name, run, alone=False)]


def _write(step: Any, tools: Tools) -> list[Stage]:
    by = None if tools.writer is None else tools.writer.name
    return _each(step, lambda item: record_of(step, item, tools.pipeline.name, by))


_STAGES: dict[str, Callable[[Any, Tools], list[Stage]]] = {
    "generate": _generate,
    "check": _check,
    "filter": _filter,
    "retrieve": _retrieve,
    "relabel": _relabel,
    "deduplicate": _deduplicate,
    "pair_labels": _pair_labels,
    "write": _write,
}
"""What makes the stages of each kind of step; a line here adds a kind."""
