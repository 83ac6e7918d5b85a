"""What a file of training records holds: counts, lengths, duplicates, languages, leaks, samples."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.data import Source, TrainingRecord, read_rows, training_records
from embedlm.data.duplicates import Duplicates
from embedlm.data.keys import text_key
from embedlm.data.languages import language_of
from embedlm.data.words import word_count
from embedlm.errors import MissingExtraError
from embedlm.evaluation.contamination import HeldOut, texts_of
from embedlm.jobs import progress
from embedlm.readout.similarity import cosine

__all__ = ["inspect_records"]

_SHOWN = 5
"""Bad records, and examples of each finding, that are shown."""
_SAMPLED = 1000
"""Records whose language is told, and that are compared with the evaluation set by vectors."""
_QUANTILES = (0, 0.05, 0.5, 0.95, 1)
_ALIKE = 0.95
"""Cosine from which two texts say the same."""
_SIDES = ("query", "positive", "negative")


@dataclass(slots=True)
class _Texts:
    """The texts of one side of the records: queries, positives or negatives."""

    words: array[int] = field(default_factory=lambda: array("l"))
    characters: array[int] = field(default_factory=lambda: array("l"))
    seen: dict[bytes, int] = field(default_factory=dict)

    def add(self, text: str) -> None:
        self.words.append(word_count(text))
        self.characters.append(len(text))
        key = text_key(text)
        self.seen[key] = self.seen.get(key, 0) + 1

    def told(self) -> dict[str, Any]:
        if not self.words:
            return {"count": 0}
        return {
            "count": len(self.words),
            "distinct": len(self.seen),
            "words": _quantiles(self.words),
            "characters": _quantiles(self.characters),
        }


@dataclass(slots=True)
class _Found:
    """What was found so far."""

    texts: dict[str, _Texts] = field(default_factory=lambda: {side: _Texts() for side in _SIDES})
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)
    sample: list[TrainingRecord] = field(default_factory=list)
    """Some records, each as likely as any other."""

    def note(self, name: str, **example: Any) -> None:
        self.counts[name] += 1
        if len(found := self.examples.setdefault(name, [])) < _SHOWN:
            found.append(example)


def inspect_records(
    path: str | Path,
    *,
    against: Sequence[str | Path] = (),
    model: Any = None,
    near: bool = False,
    samples: int = 3,
    seed: int = 0,
    show_progress: bool | None = None,
) -> dict[str, Any]:
    """Return what a file of records with queries and positives holds.

    It is read once, record by record; of each text its lengths and a hash are kept.

    Args:
        path: the file, of any form and layout that `embedlm train` reads as groups.
        against: files of evaluation sets, whose texts are looked for by runs of eight words.
        model: an `Embedder`, by whose vectors a sample of the queries is compared with those texts,
            too; None: not compared.
        near: count near-duplicates of queries (MinHash), too.
        samples: records that are shown.
        seed: of the samples.
        show_progress: None shows a bar for long jobs on a terminal.

    Raises:
        InputError: no such file.
        MissingExtraError: a package that `near` needs is not installed.
    """
    source, found, rng = Source(path), _Found(), random.Random(seed)
    held_out = HeldOut.read(against)
    duplicates = Duplicates(0.8, 2) if near else None
    count = 0
    with progress(show_progress, None, unit="record", label="inspect") as bar:
        for one in training_records(source):
            bar(1)
            if not isinstance(one, TrainingRecord):
                found.counts["bad"] += 1
                if len(found.bad) < _SHOWN:
                    found.bad.append({"line": one.line, "error": one.error})
                continue
            count += 1
            _look(one, count, found, held_out, duplicates)
            if len(found.sample) < _SAMPLED:
                found.sample.append(one)
            elif (at := rng.randrange(count)) < _SAMPLED:
                found.sample[at] = one
    rng.shuffle(found.sample)
    return {
        "file": source.name,
        "form": source.form + source.compression,
        "records": count,
        "bad": {"count": found.counts["bad"], "examples": found.bad},
        **_told(found, count, near),
        "languages": _languages(found.sample),
        "leaks": _leaks(found, against, model),
        "samples": [one.to_json() for one in found.sample[:samples]],
    }


def _look(
    record: TrainingRecord,
    number: int,
    found: _Found,
    held_out: HeldOut,
    duplicates: Duplicates | None,
) -> None:
    """Count what one record holds."""
    found.texts["query"].add(record.query)
    for side, documents in (("positive", record.positives), ("negative", record.negatives)):
        found.counts[f"{side}s"] += len(documents)
        for document in documents:
            found.texts[side].add(document.text)
    positives = {text_key(document.text) for document in record.positives}
    if text_key(record.query) in positives:
        found.note("query is positive", record=number, query=record.query[:200])
    if any(text_key(document.text) in positives for document in record.negatives):
        found.note("positive is negative", record=number, query=record.query[:200])
    for name, value in (
        ("without negatives", not record.negatives),
        ("with instruction", record.instruction is not None),
        ("with scores", any(document.score is not None for document in record.documents)),
    ):
        found.counts[name] += value
    if duplicates is not None:
        like = duplicates.like(record.query, str(number))
        if like is not None:
            found.note("near-duplicate queries", record=number, like=int(like))
    texts = [record.query, *(document.text for document in record.documents)]
    leaked = next((text for text in texts if held_out.holds(text)), None)
    if leaked is not None:
        found.note("leaks", record=number, text=leaked[:200])


def _told(found: _Found, count: int, near: bool) -> dict[str, Any]:
    names = ["query is positive", "positive is negative"]
    names += ["near-duplicate queries"] if near else []
    queries = found.texts["query"]
    return {
        "texts": {side: texts.told() for side, texts in found.texts.items()},
        "repeated_queries": sum(n - 1 for n in queries.seen.values()),
        "positives_per_record": found.counts["positives"] / count if count else 0.0,
        "negatives_per_record": found.counts["negatives"] / count if count else 0.0,
        "without_negatives": found.counts["without negatives"],
        "with_instruction": found.counts["with instruction"],
        "with_scores": found.counts["with scores"],
        "findings": {
            name: {"count": found.counts[name], "examples": found.examples.get(name, [])}
            for name in names
        },
    }


def _languages(sample: Sequence[TrainingRecord]) -> dict[str, float] | None:
    """Return the share of each language among the first positives; None without py3langid."""
    try:
        counts = Counter(language_of(one.positives[0].text) for one in sample)
    except MissingExtraError:
        return None
    return {name: n / len(sample) for name, n in counts.most_common()}


def _leaks(found: _Found, against: Sequence[str | Path], model: Any) -> dict[str, Any] | None:
    """Return how many records hold texts of the evaluation sets; None: none was named."""
    if not against:
        return None
    told: dict[str, Any] = {
        "by_words": {"count": found.counts["leaks"], "examples": found.examples.get("leaks", [])}
    }
    if model is not None:
        told["by_vectors"] = _near_vectors(found.sample, list(_evaluation_texts(against)), model)
    return told


def _evaluation_texts(paths: Sequence[str | Path]) -> Iterator[str]:
    for path in paths:
        for _, row in read_rows(path):
            yield from (text for text in texts_of(row) if word_count(text) > 2)


def _near_vectors(
    sample: Sequence[TrainingRecord], texts: Sequence[str], model: Any
) -> dict[str, Any]:
    """Compare the queries of the sample with the evaluation texts, both as queries."""
    if not sample or not texts:
        return {"compared": 0, "count": 0, "examples": []}
    q_QD = model.encode_query([one.query for one in sample])
    nearest_Q = np.full(len(sample), -np.inf)
    place_Q = np.zeros(len(sample), np.int64)
    for at in range(0, len(texts), _SAMPLED):
        t_TD = model.encode_query(list(texts[at : at + _SAMPLED]))
        cosine_QT = cosine(q_QD, t_TD)
        best_Q = cosine_QT.argmax(1)
        value_Q = cosine_QT[np.arange(len(sample)), best_Q]
        place_Q = np.where(value_Q > nearest_Q, best_Q + at, place_Q)
        nearest_Q = np.maximum(nearest_Q, value_Q)
    close = np.flatnonzero(nearest_Q >= _ALIKE)
    return {
        "compared": len(sample),
        "count": len(close),
        "examples": [
            {
                "query": sample[i].query[:200],
                "text": texts[place_Q[i]][:200],
                "cosine": round(float(nearest_Q[i]), 4),
            }
            for i in close[np.argsort(-nearest_Q[close], kind="stable")][:_SHOWN].tolist()
        ],
    }


def _quantiles(values: array[int]) -> dict[str, float]:
    found = np.quantile(np.frombuffer(values, dtype=np.dtype("l")), _QUANTILES)
    names = ("least", "5%", "median", "95%", "most")
    return dict(zip(names, (float(value) for value in found), strict=True))
