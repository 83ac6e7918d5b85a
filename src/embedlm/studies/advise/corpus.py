"""The user's corpus and queries; where there are none, queries from titles and headings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from embedlm.data import existing, read_rows
from embedlm.data.lines import heading_words
from embedlm.data.words import word_count
from embedlm.errors import InputError, RecordError
from embedlm.evaluation.readers import read_retrieval
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.suite import RetrievalFields
from embedlm.jobs.names import real_path
from embedlm.search import read_documents
from embedlm.search.documents import Document

__all__ = ["Corpus", "read_corpus"]

_FEWEST_WORDS = 2
"""Words of a title that is taken for a query."""
_ALONE = 3
"""Words of a heading that is a query without the page's title before it."""
_FEWEST_QUERIES = 2
"""Queries without which there is no interval."""


@dataclass(frozen=True)
class Corpus:
    """Documents, queries, and which documents answer them."""

    name: str
    ids: list[str]
    texts: list[str]
    queries: list[str]
    answers: list[dict[str, float]]
    """Of each query, gains by document id."""
    source: str
    """Where queries come from: answers given with the corpus, a file, or titles and headings."""

    @property
    def digest(self) -> str:
        """A hash of what is embedded."""
        seen = hashlib.sha256()
        for text in (*self.texts, "\0", *self.queries):
            seen.update(text.encode() + b"\0")
        return seen.hexdigest()[:16]

    def sampled(self, documents: int | None, queries: int | None) -> Corpus:
        """Return fewer queries and documents, drawn by seed; documents that answer all stay."""
        if queries is not None and queries < _FEWEST_QUERIES:
            raise InputError(f"{queries} queries were asked for, and 2 are the fewest; give more")
        rng = np.random.default_rng(SEED)
        chosen: Sequence[int] = range(len(self.queries))
        if queries is not None and queries < len(self.queries):
            chosen = np.sort(rng.choice(len(self.queries), queries, replace=False)).tolist()
        asked = [self.queries[i] for i in chosen]
        answers = [self.answers[i] for i in chosen]
        kept: Sequence[int] = range(len(self.ids))
        if documents is not None and documents < len(self.ids):
            needed = {d for gains in answers for d, gain in gains.items() if gain > 0}
            inside = [i for i in kept if self.ids[i] in needed]
            others = [i for i in kept if self.ids[i] not in needed]
            more = min(max(documents - len(inside), 0), len(others))
            drawn = rng.choice(len(others), more, replace=False).tolist()
            kept = sorted([*inside, *(others[i] for i in drawn)])
        return replace(
            self,
            ids=[self.ids[i] for i in kept],
            texts=[self.texts[i] for i in kept],
            queries=asked,
            answers=answers,
        )


def read_corpus(
    path: str | Path,
    queries: str | Path | None = None,
    *,
    text_field: str = "text",
    derive: bool = False,
) -> Corpus:
    """Return a corpus with its queries.

    Args:
        path: a file, a folder, or a BEIR folder, whose queries.jsonl and qrels.jsonl (or
            qrels/test.tsv) are taken.
        queries: records with `query` and `answers`, the ids of documents (or one id).
        text_field: field or column with the text.
        derive: take titles and headings, though the folder has queries.

    Raises:
        InputError: nothing is there; no queries, and no titles or headings to take for some.
        RecordError: a record that cannot be used, with file and line.
    """
    root = Path(path)
    name = real_path(root).name
    beir = _judged(root) if root.is_dir() and queries is None and not derive else None
    if beir is not None:
        data = read_retrieval(*beir)
        asked = list(data.queries)
        return Corpus(
            name,
            list(data.documents),
            list(data.documents.values()),
            [data.queries[query] for query in asked],
            [data.relevant[query] for query in asked],
            "answers given with the corpus",
        )
    given = queries is not None
    documents = list(read_documents(path, text_field=text_field, headings=given))
    if queries is not None:
        pairs = list(_asked(Path(queries), {str(d.id) for d in documents}))
        source = f"the file {Path(queries).name}"
    else:
        documents, pairs = _derived(documents, root)
        source = "titles and headings"
    if len(pairs) < _FEWEST_QUERIES and queries is not None:
        raise InputError(
            f"{str(queries)!r} has {len(pairs)} queries, and 2 are the fewest; give more, each "
            "with the fields query and answers (ids of documents)"
        )
    if len(pairs) < _FEWEST_QUERIES:
        raise InputError(
            f"{str(path)!r} has {len(pairs)} titles or headings with a text below, and 2 queries "
            "are the fewest; give --queries FILE with the fields query and answers (ids of "
            "documents)"
        )
    return Corpus(
        name,
        [str(document.id) for document in documents],
        [document.text for document in documents],
        [query for query, _ in pairs],
        [gains for _, gains in pairs],
        source,
    )


def _judged(root: Path) -> tuple[dict[str, Path], RetrievalFields] | None:
    """Return the files of a BEIR folder, with the names of their fields; None: it is none.

    Raises:
        InputError: it has judgements of several splits, and none of test.
    """
    found = {part: existing(root / f"{part}.jsonl") for part in ("corpus", "queries", "qrels")}
    fields = RetrievalFields()
    if found["qrels"] is None:  # as the benchmark writes it
        fields = RetrievalFields(judged_query="query-id", judged_document="corpus-id", gain="score")
        splits = sorted((root / "qrels").glob("*.tsv*"))
        test = [file for file in splits if file.name.partition(".")[0] == "test"]
        found["qrels"] = next(iter(test or splits), None)
        if len(splits) > 1 and not test and all(found.values()):
            raise InputError(
                f"{root / 'qrels'} has judgements of {len(splits)} splits, and none of test; "
                "leave one, or give queries"
            )
    paths = {part: file for part, file in found.items() if file is not None}
    return (paths, fields) if len(paths) == len(found) else None


def _asked(path: Path, known: set[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the queries of a file with their answers."""
    for where, record in read_rows(path):
        query, answers = record.get("query"), record.get("answers")
        ids = answers if isinstance(answers, list) else [answers]
        if not isinstance(query, str) or not query.strip() or answers is None or not ids:
            raise RecordError(
                f"{where}: give the fields query (a text) and answers (ids of documents); there "
                f"are: {', '.join(record)}"
            )
        lost = next((one for one in ids if str(one) not in known), None)
        if lost is not None:
            raise RecordError(f"{where}: the corpus has no document {lost!r}")
        yield query, {str(one): 1.0 for one in ids}


def _derived(
    documents: Sequence[Document], root: Path
) -> tuple[list[Document], list[tuple[str, dict[str, float]]]]:
    """Return the documents without their titles, and each title as a query for its own.

    A title that stands over several documents, or of a single word, is no query. A heading of few
    words says little without the page that it stands on (Setup, How it works): the page's title
    goes before it.
    """
    titled: list[tuple[str, Document]] = []
    kept: list[Document] = []
    heading, page, file = "", "", ""
    titles = _titles(root)
    for document in documents:
        text = document.text.strip()
        words = None if "\n" in text else heading_words(text)
        if document.file != file:
            heading, page, file = "", "", document.file
        if words is not None:
            heading = words
            if text[1:2] != "#":
                page = words
            elif word_count(words) < _ALONE:
                heading = f"{page} {words}".strip()
            continue
        title = titles.get(str(document.id)) or str(document.metadata.get("title") or "") or heading
        heading = ""
        bare = document
        if title and document.text.startswith(title):
            bare = replace(document, text=document.text[len(title) :].strip(" .:\n") or title)
        kept.append(bare)
        if word_count(title) >= _FEWEST_WORDS and bare.text != title:
            titled.append((title.strip(), bare))
    counts: dict[str, int] = {}
    for title, _ in titled:
        counts[title] = counts.get(title, 0) + 1
    pairs = [(title, {str(d.id): 1.0}) for title, d in titled if counts[title] == 1]
    return kept, pairs


def _titles(root: Path) -> dict[str, str]:
    """Return the titles of a BEIR corpus, which its documents' texts begin with."""
    corpus = existing(root / "corpus.jsonl") if root.is_dir() else None
    if corpus is None:
        return {}
    rows = (row for _, row in read_rows(corpus))
    return {
        str(row["_id"]): str(row["title"]) for row in rows if row.get("_id") and row.get("title")
    }
