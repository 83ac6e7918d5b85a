"""Long documents that differ in one sentence: passkeys and needles, as in LongEmbed.

Zhu et al., LongEmbed (EMNLP 2024): 50 queries, each of which one of 100 documents of a length
answers; nDCG@1. A passkey stands in sentences that say nothing, a needle in a text of the filler
file. Lengths are of words, 3 for 4 tokens, so that all models read the same texts.

The sentences are ours, and so are the names; they are drawn by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedlm.data import read_rows
from embedlm.errors import RecordError
from embedlm.evaluation.collection import main_head
from embedlm.evaluation.metrics import best_documents, score_queries
from embedlm.evaluation.probes import Needle
from embedlm.evaluation.readers import text_of
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.subject import Scored, Subject

__all__ = ["LongDocument", "long_documents", "needle"]

_FIRST = (
    "Mara Jonas Elif Tomas Ingrid Kofi Lucia Henrik Amina Pavel Noor Felix Greta Oscar Yuki Diego "
    "Hanna Ravi Clara Emil"
)
_LAST = (
    "Lindqvist Okafor Brandt Moreau Tanaka Silva Novak Haddad Keller Rossi Larsen Petrov Ahmed "
    "Dubois Fischer Marino Yilmaz Costa Berg Ward"
)
_LIKES = {
    "dessert": "plum cake|lemon tart|rice pudding|walnut ice cream|poached pears",
    "sport": "fencing|rowing|table tennis|archery|cross-country skiing",
    "instrument": "the cello|the accordion|the harp|the trumpet|the oboe",
    "flower": "foxglove|cornflower|white lilac|marigold|peony",
    "city": "Ljubljana|Bergen|Valparaiso|Tbilisi|Porto",
    "animal": "the otter|the heron|the lynx|the hedgehog|the gecko",
    "drink": "mint tea|ginger beer|cold cocoa|apple juice|black coffee",
    "game": "backgammon|dominoes|go|checkers|charades",
    "hobby": "bookbinding|beekeeping|kite making|stargazing|pottery",
    "colour": "teal|ochre|crimson|indigo|olive",
}
_NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
_FEWEST = 200
"""Words of a filler, at least."""


@dataclass(frozen=True, slots=True)
class LongDocument:
    """A long text, the sentence hidden in it, and the query that asks for that sentence."""

    text: str
    sentence: str
    query: str


def needle(subject: Subject, task: Needle, paths: Mapping[str, Path]) -> Scored:
    """Score whether a query finds the one long document that answers it."""
    documents = long_documents(task, _words(paths["filler"], task.text))
    texts = [document.text for document in documents]
    asked = documents[: task.queries]
    head = main_head(subject)
    subject = subject.fitted(texts)
    found = subject.encode(texts, task, "document", heads=head)
    queries = subject.encode([one.query for one in asked], task, "query", heads=head)
    names = [str(number) for number in range(len(documents))]
    scores = subject.model.similarity(queries, found, heads=head)
    best = best_documents(scores, names, len(names))
    judged = {name: {name: 1.0} for name in names[: len(asked)]}
    runs = dict(zip(judged, best, strict=True))
    each = score_queries(runs, judged, ["ndcg@1", "ndcg@10"])
    metrics = {name: float(np.mean(values)) for name, values in each.items()}
    renderer = subject.model.route("document").renderer
    limit = subject.options.get("max_length") or renderer.max_length("document")
    sample = Sample.of(
        "mean",
        "query",
        list(judged),
        [[one.query, one.sentence] for one in asked],
        {"value": each[task.metric], **each},
    )
    notes = {"words": len(texts[0].split()), "max_length": limit}
    return Scored(metrics, sample, notes)


def long_documents(task: Needle, filler: Sequence[str]) -> list[LongDocument]:
    """Return a task's documents; the first ones have queries.

    Args:
        task: their number and length.
        filler: words of which needles are surrounded; a document begins anywhere among them.
    """
    rng = np.random.default_rng(SEED)
    people = [f"{first} {last}" for first in _FIRST.split() for last in _LAST.split()]
    if task.documents > len(people):
        raise RecordError(f"documents is {task.documents}; {len(people)} at most have their names")
    names = [people[i] for i in rng.permutation(len(people))[: task.documents]]
    words = max(task.tokens * 3 // 4, 48)
    noise, documents = _NOISE.split(), []
    for number, name in enumerate(names):
        sentence, query = _hidden(task.ask, name, number, rng)
        own = sentence.split()
        around = words - len(own)
        source = noise if task.ask == "passkey" else filler
        start = 0 if task.ask == "passkey" else int(rng.integers(len(source)))
        text = [source[(start + i) % len(source)] for i in range(around)]
        place = int(rng.integers(around + 1))
        if task.ask == "passkey":
            place -= place % len(noise)  # between two sentences
        documents.append(
            LongDocument(" ".join([*text[:place], *own, *text[place:]]), sentence, query)
        )
    return documents


def _hidden(ask: str, name: str, number: int, rng: np.random.Generator) -> tuple[str, str]:
    """Return the sentence that is hidden in a document, and the query for it."""
    if ask == "passkey":
        key = int(rng.integers(10_000, 100_000))
        sentence = f"The pass key of {name} is {key}. Remember it. {key} is the pass key of {name}."
        return sentence, f"What is the pass key of {name}?"
    what = list(_LIKES)[number % len(_LIKES)]
    options = _LIKES[what].split("|")
    liked = options[int(rng.integers(len(options)))]
    return f"The favourite {what} of {name} is {liked}.", f"What is the favourite {what} of {name}?"


def _words(path: Path, field: str) -> list[str]:
    words = [w for where, row in read_rows(path) for w in text_of(row, where, field).split()]
    if len(words) < _FEWEST:
        raise RecordError(f"{path}: {len(words)} words; a filler needs {_FEWEST} at least")
    return words
