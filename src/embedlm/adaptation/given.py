"""The caller's queries: their positives are passages, or documents that are named by their ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from embedlm.adaptation.chunks import Chunk
from embedlm.adaptation.derived import Query
from embedlm.adaptation.settings import GIVEN
from embedlm.data import Source, TrainingRecord, training_records
from embedlm.errors import InputError
from embedlm.jobs import Reject

__all__ = ["Asked", "read_queries"]


class Asked:
    """The queries of a file whose positives were found among the chunks."""

    def __init__(self, queries: list[list[Query]], set_aside: list[Reject]) -> None:
        self.queries = queries
        """Of each record, one for each chunk that answers it."""
        self.set_aside = set_aside


def read_queries(path: str | Path, chunks: Sequence[Chunk]) -> Asked:
    """Return the queries of a file, each with the chunks that answer it.

    A positive is the id of a document or a chunk (all chunks of a document count), or a passage: a
    chunk that holds it, or that it holds. A query without such a positive is set aside, with the
    reason.

    Raises:
        InputError: no such file, or no query in it has a positive among the documents.
    """
    finder = _Finder(chunks)
    found: list[list[Query]] = []
    aside: list[Reject] = []
    for number, record in enumerate(training_records(Source(path)), 1):
        if isinstance(record, Reject):
            aside.append(record)
            continue
        answers = list(finder.answers(record))
        if answers:
            text = record.query
            found.append([Query(text, GIVEN, chunk, chunk.passage) for chunk in answers])
        else:
            first = record.positives[0].text[:60]
            told = f"no document has the id or the text of its positive {first!r}"
            aside.append(Reject(Path(path).name, number, told, record.query))
    if not found:
        why = f" (the first: {aside[0].error})" if aside else " (it holds no query)"
        raise InputError(
            f"no query of {str(path)!r} has a positive among the documents{why}. Give each query "
            "its positives, as texts or as ids of documents "
            '({"query": ..., "positives": [...]}), or leave queries out: then they are made from '
            "the documents"
        )
    return Asked(found, aside)


class _Finder:
    """Finds the chunks that a positive names."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.by_name: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            for name in dict.fromkeys((chunk.id, chunk.document)):
                self.by_name.setdefault(name, []).append(chunk)
        self.texts = [(_plain(chunk.text), _plain(chunk.passage), chunk) for chunk in chunks]
        self.by_text = {text: chunk for body, whole, chunk in self.texts for text in (body, whole)}

    def answers(self, record: TrainingRecord) -> Iterator[Chunk]:
        """Yield the chunks that answer a query, each once."""
        found: dict[str, Chunk] = {}
        for positive in record.positives:
            for name in (positive.id, positive.text):
                named = self.by_name.get(name, []) if name is not None else []
                found |= {chunk.id: chunk for chunk in named}
                if named:
                    break
            else:
                found |= {chunk.id: chunk for chunk in self._of_text(positive.text)}
        yield from found.values()

    def _of_text(self, text: str) -> list[Chunk]:
        plain = _plain(text)
        if plain in self.by_text:
            return [self.by_text[plain]]
        return [chunk for body, whole, chunk in self.texts if plain in whole or body in plain]


def _plain(text: str) -> str:
    return " ".join(text.split())
