"""From documents to queries in three parts: what is mined and trained on, and what is held out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.adaptation.chunks import Chunk
from embedlm.adaptation.derived import Query, derived
from embedlm.adaptation.given import Asked
from embedlm.adaptation.settings import DERIVED, GIVEN, WRITTEN, Settings
from embedlm.adaptation.split import DEV, HELD_OUT, TRAIN, Split, split_documents
from embedlm.errors import InputError
from embedlm.jobs import write_file
from embedlm.jobs.json_files import json_text

__all__ = ["MOST", "PASSAGES", "Asking", "Divided", "divide", "made_queries", "searched"]
__all__ += ["write_lines_of", "write_parts"]

MOST = {DEV: 100, HELD_OUT: 1_000}
"""Queries that choose and that are evaluated, at most. The first are embedded at every checkpoint;
the others once for each model, and twice as many see a gain that is 0.7 times as large."""
PASSAGES = {TRAIN: 5_000, HELD_OUT: 1_000}
"""Passages that are mined and that held-out queries search, at most; the answers are among them."""
FEWEST = 2
"""Held-out queries without which there is no interval."""


@dataclass(frozen=True, slots=True)
class Asking:
    """All queries of a run: a list for each, with a `Query` for each chunk that answers it."""

    asked: list[list[Query]]
    ambiguous: int
    """Derived queries that several chunks gave, which are left out."""


@dataclass(frozen=True, slots=True)
class Divided:
    """The queries of each part."""

    split: Split
    parts: dict[str, list[list[Query]]]
    ambiguous: int
    """Derived and written queries that several chunks gave, which are left out."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many queries of each kind a part has."""
        return {
            part: dict(sorted(Counter(query[0].kind for query in queries).items()))
            for part, queries in self.parts.items()
        }


def made_queries(
    chunks: Sequence[Chunk], settings: Settings, given: Asked | None, written: Sequence[Query]
) -> Asking:
    """Return the caller's queries, those written by a language model, and derived ones."""
    kinds = [kind for kind in settings.kinds if kind in DERIVED]
    found = list(derived(chunks, kinds, settings.per_chunk, settings.seed)) if kinds else []
    asked = [[query] for query in (*written, *found)]
    times = Counter(query.text.lower() for (query,) in asked)
    clear = [own for own in asked if times[own[0].text.lower()] == 1]
    return Asking([*(given.queries if given else []), *clear], len(asked) - len(clear))


def divide(asking: Asking, chunks: Sequence[Chunk], settings: Settings) -> Divided:
    """Divide documents, and with them queries, into three parts, each of a bounded size.

    Held-out queries are of one source: the caller's where there are some, else those of the
    language model, else derived ones, of each chunk one.

    Raises:
        InputError: too few documents or queries.
    """
    shared: dict[str, list[str]] = {}
    for own in asking.asked:
        if own[0].kind == GIVEN:
            shared[own[0].text] = list(dict.fromkeys(query.document for query in own))
    documents = list(dict.fromkeys(chunk.document for chunk in chunks))
    split = split_documents(documents, shared, settings.held_out, settings.seed)
    parts: dict[str, list[list[Query]]] = {TRAIN: [], DEV: [], HELD_OUT: []}
    for own in asking.asked:
        parts[split.of(own[0].text, own[0].document)].append(own)
    sources = {_source(own) for own in parts[HELD_OUT]}
    best = next((one for one in (GIVEN, WRITTEN, "derived") if one in sources), None)
    held = [own for own in parts[HELD_OUT] if _source(own) == best]
    parts[HELD_OUT] = _one_a_chunk(held, settings.seed) if best == "derived" else held
    most = {TRAIN: settings.queries, **MOST}
    chosen = {part: _drawn(part, own, most[part], settings.seed) for part, own in parts.items()}
    for part, least in ((TRAIN, 2), (DEV, 1), (HELD_OUT, FEWEST)):
        if len(chosen[part]) < least:
            told = ", ".join(f"{name} {len(own)}" for name, own in chosen.items())
            raise InputError(
                f"too few queries ({told}) from {len(documents)} documents with {len(chunks)} "
                "chunks; give more documents, or queries of your own"
            )
    return Divided(split, chosen, asking.ambiguous)


def _source(own: Sequence[Query]) -> str:
    return own[0].kind if own[0].kind in (GIVEN, WRITTEN) else "derived"


def _one_a_chunk(queries: list[list[Query]], seed: int) -> list[list[Query]]:
    """Return one query of each chunk: what is taken out of a passage is taken out for all."""
    by_chunk: dict[str, list[list[Query]]] = {}
    for own in queries:
        by_chunk.setdefault(own[0].chunk.id, []).append(own)
    return [random.Random(f"{seed}\0{id}\0held").choice(own) for id, own in by_chunk.items()]


def _drawn(part: str, queries: list[list[Query]], most: int, seed: int) -> list[list[Query]]:
    if len(queries) <= most:
        return queries
    chosen = random.Random(f"{seed}\0{part}").sample(range(len(queries)), most)
    return [queries[i] for i in sorted(chosen)]


# -- files ------------------------------------------------------------------------------------


def write_lines_of(path: Path, values: Iterable[Any]) -> None:
    """Write objects, a line each; the file appears whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    content = "".join(f"{json_text(value)}\n" for value in values).encode("utf-8")
    write_file(path, lambda handle: handle.write(content))


def write_parts(divided: Divided, chunks: Sequence[Chunk], data: Path, work: Path) -> int:
    """Write the corpus, the held-out set in BEIR's form, and what is mined.

    Of a large corpus, passages are mined and searched that a fixed seed draws beside the answers.

    Args:
        divided: the queries of each part.
        chunks: of all documents.
        data: the folder that is kept.
        work: the folder that is removed at the end.

    Returns:
        How many passages held-out queries search.
    """
    write_lines_of(data / "corpus.jsonl", (chunk.to_json() for chunk in chunks))
    held, folder = divided.parts[HELD_OUT], data / HELD_OUT
    shown = {query.chunk.id: query.passage for own in held for query in own}
    seen = searched(chunks, held, PASSAGES[HELD_OUT])
    write_lines_of(
        folder / "corpus.jsonl",
        ({"_id": one.id, "text": shown.get(one.id, one.passage)} for one in seen),
    )
    rows = [(f"q{number}", own) for number, own in enumerate(held)]
    write_lines_of(
        folder / "queries.jsonl",
        ({"_id": id, "text": own[0].text, "kind": own[0].kind} for id, own in rows),
    )
    qrels = ({"q": id, "d": query.chunk.id, "rel": 1} for id, own in rows for query in own)
    write_lines_of(folder / "qrels.jsonl", qrels)
    trained = [one for one in chunks if divided.split.trains_on(one.document)]
    learnt = [(part, own) for part in (TRAIN, DEV) for own in divided.parts[part]]
    mined = searched(trained, [own for _, own in learnt], PASSAGES[TRAIN])
    write_lines_of(work / "passages.jsonl", ({"id": one.id, "text": one.passage} for one in mined))
    write_lines_of(work / "records.jsonl", (_record(own, part) for part, own in learnt))
    return len(seen)


def searched(chunks: Sequence[Chunk], asked: Iterable[list[Query]], most: int) -> list[Chunk]:
    """Return so many chunks at most: all that answer a query, and others drawn at random."""
    if len(chunks) <= most:
        return list(chunks)
    answers = {query.chunk.id for own in asked for query in own}
    others = [one.id for one in chunks if one.id not in answers]
    drawn = random.Random(0).sample(others, min(len(others), max(0, most - len(answers))))
    kept = answers.union(drawn)
    return [one for one in chunks if one.id in kept]


def _record(own: Sequence[Query], part: str) -> dict[str, Any]:
    """Return a record to be mined.

    A passage from which the query was taken has no id, and the whole chunk is a positive beside it:
    then that chunk is no negative, and the score is that of the passage that is trained on.
    """
    reduced = [query.passage for query in own if query.passage != query.chunk.passage]
    whole = [query.chunk for query in own]
    return {
        "query": own[0].text,
        "positives": [*reduced, *(chunk.passage for chunk in whole)],
        "positive_ids": [*([None] * len(reduced)), *(chunk.id for chunk in whole)],
        "kind": own[0].kind,
        "part": part,
        "reduced": bool(reduced),
    }
