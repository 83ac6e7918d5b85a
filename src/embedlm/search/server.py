"""A collection on a Qdrant server or cluster, by URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from embedlm.errors import EmbedLMError, InputError, JobError, require
from embedlm.search.qdrant import FIRST, QdrantPoints, point_id
from embedlm.search.store import FirstStage, StoredPoint

__all__ = ["QdrantStore"]

_DISTANCES = {"cosine": "DOT", "dot": "DOT", "euclidean": "EUCLID", "manhattan": "MANHATTAN"}
_PAGE = 256


class QdrantStore(QdrantPoints):
    """A `Store` on a server; see `QdrantPoints`.

    A place that is no URL is a folder of qdrant-client's local mode: exact, and slow above 20,000
    documents. It is for trials.
    """

    def __init__(
        self,
        place: str,
        collection: str,
        *,
        similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "cosine",
        length_normalize: bool = False,
        first: FirstStage | None = None,
        api_key: str | None = None,
        timeout: int = 60,
    ) -> None:
        """Connect to a server; the collection is made when documents are added.

        Args:
            place: the server's URL, or a folder, or ":memory:".
            collection: its name there.
            similarity: between dense vectors.
            length_normalize: divide MaxSim by the number of query tokens.
            first: the cheap search that finds candidates among dense vectors.
            api_key: of the server.
            timeout: seconds that a request may take.

        Raises:
            InputError: the server does not answer.
            MissingExtraError: qdrant-client is not installed.
        """
        client = require("qdrant_client", "search")
        super().__init__(
            client.models, similarity=similarity, length_normalize=length_normalize, first=first
        )
        self.place, self.collection = place, collection
        where: dict[str, Any] = {"url": place, "api_key": api_key, "timeout": timeout}
        where["check_compatibility"] = False  # it warns, from a thread, where no server answers
        self._local = "://" not in place
        if place == ":memory:":
            where = {"location": place}
        elif self._local:
            where = {"path": place}
        with self._told():
            self._client = client.QdrantClient(**where)
            if self._client.collection_exists(collection):
                self._widths = self._found()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Refuse: a server has a URL, and `QdrantStore(url, collection)` opens it."""
        raise InputError(f"{str(path)!r} is a path; open a server by QdrantStore(url, collection)")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except (EmbedLMError, KeyboardInterrupt):
            raise
        except Exception as error:
            if "already accessed by another instance" in str(error):
                raise JobError(
                    f"another process has {self.place} open; wait until it ends"
                ) from error
            raise InputError(
                f"the Qdrant server at {self.place} did not do what was asked "
                f"({type(error).__name__}: {str(error)[:300]}); check the URL, the key and that it "
                "runs"
            ) from error

    def _found(self) -> dict[str, tuple[str, int | None]]:
        """Return the heads of a collection that is there already."""
        params = self._client.get_collection(self.collection).config.params
        held = params.vectors or {}
        named = held if isinstance(held, dict) else {"(without a name)": held}
        heads: dict[str, tuple[str, int | None]] = {}
        for name, one in named.items():
            if name != FIRST:
                heads[name] = ("tokens" if one.multivector_config else "dense", one.size)
        short = self.first is not None and self.first.kind == "short"
        dense = named.get("dense")
        wanted = _DISTANCES[self.similarity]
        if dense is not None and (dense.distance.name != wanted or short != (FIRST in named)):
            first = "a short first stage" if FIRST in named else "no short first stage"
            raise InputError(
                f"the collection {self.collection!r} at {self.place} was made to compare by "
                f"{dense.distance.name.lower()} with {first}, and the index compares by "
                f"{self.similarity}{' with one' if short else ''}; give another collection"
            )
        return heads | {name: ("sparse", None) for name in params.sparse_vectors or {}}

    def _create(self) -> None:
        api = self._api
        vectors: dict[str, Any] = {}
        sparse: dict[str, Any] = {}
        for head, (form, width) in self._widths.items():
            if form == "sparse":
                sparse[head] = api.SparseVectorParams()
            elif form == "tokens":
                vectors[head] = api.VectorParams(
                    size=width,
                    distance=api.Distance.DOT,
                    multivector_config=api.MultiVectorConfig(
                        comparator=api.MultiVectorComparator.MAX_SIM
                    ),
                    hnsw_config=api.HnswConfigDiff(m=0),
                )
            else:
                vectors[head] = self._dense_config(width)
        if self.first is not None and self.first.kind == "short":
            vectors[FIRST] = api.VectorParams(size=self.first.dim, distance=api.Distance.DOT)
        with self._told():
            self._client.create_collection(
                self.collection, vectors_config=vectors, sparse_vectors_config=sparse or None
            )

    def _dense_config(self, width: int | None) -> Any:
        api = self._api
        more: dict[str, Any] = {}
        if self.first is not None and self.first.kind == "binary":
            more["quantization_config"] = api.BinaryQuantization(
                binary=api.BinaryQuantizationConfig(always_ram=True)
            )
        if self.first is not None and self.first.kind == "short":  # only candidates are compared
            more["hnsw_config"] = api.HnswConfigDiff(m=0)
        distance = getattr(api.Distance, _DISTANCES[self.similarity])
        return api.VectorParams(size=width, distance=distance, **more)

    def __len__(self) -> int:
        with self._told():
            if not self._widths:
                return 0
            return int(self._client.count(self.collection, exact=True).count)

    def find_by(self, *fields: str) -> None:
        """Have the server find documents by fields of their payload; a cluster may ask for that."""
        kind = self._api.PayloadSchemaType.KEYWORD
        for name in () if self._local else fields:  # which has no such index, and warns
            with self._told():
                self._client.create_payload_index(self.collection, name, kind, wait=True)

    def count(self, field: str, value: str) -> int:
        """Return the number of documents whose payload has a value in a field."""
        api = self._api
        same = api.FieldCondition(key=field, match=api.MatchValue(value=value))
        with self._told():
            if not self._widths:
                return 0
            where = api.Filter(must=[same])
            return int(self._client.count(self.collection, count_filter=where, exact=True).count)

    def keep_only(self, field: str, value: str) -> int:
        """Remove what has not a value in a field of its payload; return how much that was."""
        api, before = self._api, len(self)
        same = api.FieldCondition(key=field, match=api.MatchValue(value=value))
        with self._told():
            others = api.FilterSelector(filter=api.Filter(must_not=[same]))
            self._client.delete(self.collection, others, wait=True)
        return before - len(self)

    def _upsert(self, points: list[Any]) -> None:
        with self._told():
            self._client.upsert(self.collection, points, wait=True)

    def put(self, points: list[StoredPoint]) -> None:
        """Add documents as another store of Qdrant's keeps them."""
        made = [
            self._point(
                point_id(key),
                {head: self._foreign(value) for head, value in vectors.items()},
                payload,
            )
            for key, vectors, payload in points
        ]
        self._upsert(made)

    def _foreign(self, value: Any) -> Any:
        if hasattr(value, "indices"):
            return self._api.SparseVector(indices=list(value.indices), values=list(value.values))
        return value

    def _delete(self, points: list[str]) -> None:
        with self._told():
            self._client.delete(self.collection, self._api.PointIdsList(points=points), wait=True)

    def _replace(self, head: str, values: Mapping[str, Any]) -> None:
        gone = [point for point, value in values.items() if value is None]
        held = [
            self._api.PointVectors(id=point, vector={head: value})
            for point, value in values.items()
            if value is not None
        ]
        with self._told():
            if held:
                self._client.update_vectors(self.collection, held, wait=True)
            if gone:
                self._client.delete_vectors(self.collection, [head], gone, wait=True)

    def _point(self, id: str, vectors: dict[str, Any], payload: dict[str, Any]) -> Any:
        return self._api.PointStruct(id=id, vector=vectors, payload=payload)

    def _query(self, query: Any, using: str, limit: int, more: Mapping[str, Any]) -> list[Any]:
        options: dict[str, Any] = {}
        if "filter" in more:
            options["query_filter"] = more["filter"]
        if "params" in more and not self._local:  # which is exact, and warns of them
            options["search_params"] = more["params"]
        if "first" in more:
            short, count, where = more["first"]
            options["prefetch"] = [
                self._api.Prefetch(query=short, using=FIRST, limit=count, filter=where)
            ]
        with self._told():
            found: list[Any] = self._client.query_points(
                self.collection, query=query, using=using, limit=limit, with_payload=True, **options
            ).points
        return found

    def scroll(self) -> Iterator[StoredPoint]:
        """Yield all documents with their vectors, in the order of their points."""
        offset = None
        while self._widths:
            with self._told():
                records, offset = self._client.scroll(
                    self.collection,
                    limit=_PAGE,
                    offset=offset,
                    with_payload=True,
                    with_vectors=True,
                )
            for record in records:
                yield StoredPoint(record.payload["id"], dict(record.vector), record.payload)
            if offset is None:
                return

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
