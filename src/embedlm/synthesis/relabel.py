"""FRet: the language model says which of the passages that a search finds answers a query best.

Gecko (Lee et al., arXiv 2403.20327): the candidates of a query are ranked by query likelihood,
log p(query | passage), and by relevance classification, and both rankings are fused by reciprocal
ranks. The first is the positive, be it the passage that the query was written for or not; the last,
or one drawn from the rest, is the hard negative.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from embedlm.generation import Conversation, Question, Sampling, converse
from embedlm.generation.generator import batches
from embedlm.schema.pipeline import Relabel
from embedlm.search.fusion import fuse
from embedlm.synthesis.asking import Outcome
from embedlm.synthesis.items import Item, fill, seed_of
from embedlm.synthesis.ranking import Ranked

__all__ = ["graded", "relabelled"]

_BLOCK = 64
"""Queries that are searched at once."""


def relabelled(step: Relabel, tools: Any, items: Iterable[Item]) -> Iterator[Outcome]:
    """Yield each item with the positive and the negative that the language model finds."""
    conversations = _conversations(step, tools, items)
    return converse(tools.writer, conversations, tools.cache, tools.spent)


def _conversations(
    step: Relabel, tools: Any, items: Iterable[Item]
) -> Iterator[Conversation[Outcome]]:
    for block in batches(items, _BLOCK):
        found = tools.ranker.best([fill(step.query, item) for item in block], step.candidates)
        for item, ranked in zip(block, found, strict=True):
            yield _conversation(step, tools, item, ranked)


def _conversation(
    step: Relabel, tools: Any, item: Item, ranked: Sequence[Ranked]
) -> Conversation[Outcome]:
    made, seed_key = Outcome(), tools.ranker.key(fill(step.passage, item))
    candidates = list(ranked)
    if seed_key not in [one.key for one in candidates]:
        seed = Ranked(str(item.get("passage_id", item["id"])), fill(step.passage, item), 0.0)
        candidates = [*candidates[: step.candidates - 1], seed]
    if len(candidates) < 2:
        made.aside.append((f"{step.name}: the search finds nothing else", item))
        return made
    runs = []
    for ranker in step.rankers:
        run: dict[str, float] = {}
        for at, candidate in enumerate(candidates):
            score = yield from _score(step, ranker, item, candidate, made)
            if score is None:
                made.aside.append((f"{step.name}: {ranker}: the answer is no score", item))
                return made
            run[f"{at:04d}"] = score
        runs.append(run)
    fused = fuse(runs, "rrf", k=step.rrf_k)
    order = [candidates[int(name)] for name in sorted(fused, key=lambda name: (-fused[name], name))]
    rest = order[1:]
    rng = random.Random(seed_of(tools.seed, step.name, item["id"]))
    negative = rest[-1] if step.negative == "last" else rng.choice(rest)
    found = {
        "positive": order[0].text,
        "positive_id": order[0].id,
        "negative": negative.text,
        "negative_id": negative.id,
        "seed_rank": [one.key for one in order].index(seed_key) + 1,
    }
    made.counts["relabelled"] = int(order[0].key != seed_key)
    made.items.append({**item, **found})
    return made


def _score(
    step: Relabel, ranker: str, item: Item, candidate: Ranked, made: Outcome
) -> Conversation[float | None]:
    """Return log p(query | passage), or the grade of relevance that is expected."""
    shown = {**item, "candidate": candidate.text, "labels": ", ".join(step.labels)}
    prompt = step.likelihood if ranker == "likelihood" else step.relevance
    chat = [{"role": "user", "content": fill(prompt, shown).strip()}]
    if ranker == "likelihood":
        question = Question(chat, continuation=fill(step.query, item))
    else:
        question = Question(chat, Sampling(0.0, 1.0, 4), labels=step.labels)
    answer = yield question
    for name in ("prompt_tokens", "new_tokens"):
        made.counts[name] = made.counts.get(name, 0) + getattr(answer, name)
    made.counts["answers"] = made.counts.get("answers", 0) + 1
    if answer.scores is None:
        return None
    return answer.scores[0] if ranker == "likelihood" else graded(answer.scores)


def graded(logprobs: Sequence[float]) -> float:
    """Return sum_i i p_i of labels, worst first, by their log-probabilities, made to sum to 1."""
    top = max(logprobs)
    shares = [math.exp(value - top) for value in logprobs]
    return sum(i * share for i, share in enumerate(shares)) / sum(shares)
