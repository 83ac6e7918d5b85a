"""What an index is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedlm.encode.inputs import check_texts
from embedlm.encode.items import Pictured
from embedlm.errors import InputError, UnsupportedError
from embedlm.schema.arguments import check_arguments
from embedlm.search.chunks import Span
from embedlm.search.forms import vector_form
from embedlm.vision import is_image

__all__ = ["OF_MODEL", "Found", "Query", "check_images", "checked_vectors", "query_of"]

OF_MODEL = ("dense", "late-interaction", "sparse")
"""The modes that compare what the model gives, the first that there is being taken."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question: words, an image, or both."""

    text: str
    """Its words; "" for an image alone."""
    item: str | Pictured
    """What is embedded."""

    @property
    def image(self) -> bool:
        """Whether it has an image."""
        return isinstance(self.item, Pictured)


def query_of(query: Any) -> Query:
    """Return a query that was given, as a text, an image or a mapping of these.

    Raises:
        InputError: something else, an empty text, or an image that cannot be read.
    """
    if isinstance(query, Query):
        return query
    if isinstance(query, Mapping | Pictured) or is_image(query):
        (part,) = check_texts([query], all_kinds=True).parts
        if isinstance(part, Pictured):
            return Query(part.text if part.text.strip() else "", part)
        query = getattr(part, "text", query)
    check_arguments("search", query=query)
    if not query.strip():
        raise InputError("the query is empty; say what to look for")
    return Query(query, query)


def check_images(queries: Sequence[Query], heads: Sequence[str], reranked: bool) -> None:
    """Refuse an image where something that takes part in a search would not see it.

    Args:
        queries: that are asked.
        heads: by which passages are ranked.
        reranked: whether a re-ranker orders the best ones anew.

    Raises:
        UnsupportedError: says what, and what can be done.
    """
    if reranked and any(query.image for query in queries):
        raise UnsupportedError(
            "a re-ranker reads texts alone, and the query has an image; search without one of them"
        )
    if "bm25" in heads and not all(query.text for query in queries):
        raise UnsupportedError(
            "BM25, and so a hybrid search, compares words, and an image alone has none; give a "
            f"text beside it, or another mode ({', '.join(OF_MODEL)})"
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A document that answers a query, by its best passage."""

    id: str | int
    """As it was given."""
    score: float
    text: str
    """Of the passage; "" for an image alone."""
    rank: int
    file: str
    line: int
    chunk: int
    metadata: Mapping[str, Any]
    sentence: Span
    """Where the matching sentence stands in the text."""
    image: str | None = None
    """The path of its image, from the folder that was indexed; None: it has none."""

    @property
    def shown_image(self) -> dict[str, str]:
        """The path of its image under that name, where it has one."""
        return {} if self.image is None else {"image": self.image}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; `image` is among them where there is one."""
        names = ("id", "score", "text", "rank", "file", "line", "chunk", "metadata")
        found = {name: getattr(self, name) for name in names}
        found["sentence"] = list(self.sentence)
        return {**found, **self.shown_image}


def checked_vectors(given: Mapping[str, Any], heads: Sequence[str], count: int) -> dict[str, Any]:
    """Return the vectors of queries that a search compares.

    Raises:
        InputError: those of a head are missing, or are not as many as the queries.
    """
    for head in heads:
        held = None if head not in given else vector_form(given[head]).count(given[head])
        if held != count:
            raise InputError(
                f"vectors hold {held or 'none'} for {head}, and there are {count} queries; give "
                f"one for each, by head ({', '.join(heads)}), or none at all"
            )
    return {head: given[head] for head in heads}
