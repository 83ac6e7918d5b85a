"""Qdrant Edge: an index in a folder, inside this process, without a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

from embedlm.errors import EmbedLMError, InputError, JobError, require
from embedlm.jobs.json_files import read_json, write_json
from embedlm.search.forms import gathered
from embedlm.search.qdrant import FIRST, QdrantPoints, point_id
from embedlm.search.store import FirstStage, StoredPoint

__all__ = ["EdgeStore", "check_space"]

FORMAT = "embedlm edge store 1"
SPARE = {"edge": 160 << 20, "exact": 1 << 20}
"""Bytes of the disk that each store leaves free: Edge ends its process where it cannot write."""
_FACTS = "store.json"
_FULL = ("FileTooLarge", "StorageFull", "QuotaExceeded", "No space left")
"""By what Edge's errors tell a disk that has no room."""
_LOCKED = ("Read-only file system", "Permission denied")
"""Likewise a folder in which it may not write."""
_SHARD = "shard"
_DISTANCES = {"cosine": "Dot", "dot": "Dot", "euclidean": "Euclid", "manhattan": "Manhattan"}
"""Vectors that are compared by cosine are kept at length 1."""


def check_space(folder: Path, size: int, store: str) -> None:
    """Refuse to write where the disk has no room.

    Args:
        folder: on the disk.
        size: bytes that are to be written; they are needed twice, and Edge has a log.
        store: edge or exact.

    Raises:
        JobError: with the free and the needed space.
    """
    free = shutil.disk_usage(folder).free
    needed = 2 * size + SPARE[store]
    if free < needed:
        raise JobError(
            f"no space left for the index: {free >> 20:,} MiB are free at {folder} and "
            f"{-(-needed >> 20):,} MiB are needed. What was embedded is kept; make room and run "
            "the same command again"
        )


class EdgeStore(QdrantPoints):
    """A `Store` in a folder; see `QdrantPoints`. One process at a time can open it.

    Every call holds Python's lock to its end. Until `optimize` a search compares every document.
    """

    def __init__(
        self,
        path: Path,
        *,
        similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "cosine",
        length_normalize: bool = False,
        first: FirstStage | None = None,
    ) -> None:
        """Make an empty store.

        Args:
            path: its folder, which must be new or empty.
            similarity: between dense vectors.
            length_normalize: divide MaxSim by the number of query tokens.
            first: the cheap search that finds candidates among dense vectors.

        Raises:
            InputError: something is in the folder.
            MissingExtraError: qdrant-edge-py is not installed.
        """
        api = require("qdrant_edge", "search")
        super().__init__(api, similarity=similarity, length_normalize=length_normalize, first=first)
        self.path = path
        self._shard: Any = None
        if path.exists() and any(path.iterdir()):
            raise InputError(f"{path} is not empty; give a new folder, or open the store there")
        path.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        if self._shard is None:
            return 0
        with self._told():
            return int(self._shard.count(self._api.CountRequest(exact=True)))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the store in a folder.

        Raises:
            InputError: it is not a store of this kind, or is damaged.
            JobError: another process has it open.
        """
        facts = read_json(path / _FACTS, InputError) if (path / _FACTS).is_file() else None
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            raise InputError(f"{str(path)!r} is not a store that EdgeStore wrote; give one")
        store = cls.__new__(cls)
        first = facts["first"]
        QdrantPoints.__init__(
            store,
            require("qdrant_edge", "search"),
            similarity=facts["similarity"],
            length_normalize=facts["length_normalize"],
            first=None if first is None else FirstStage(**first),
        )
        store.path, store._shard = path, None
        store._widths = {head: (form, width) for head, (form, width) in facts["widths"].items()}
        if store._widths:
            with store._told():
                store._shard = store._api.EdgeShard.load(str(path / _SHARD))
        return store

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn Edge's errors, which have no class of their own, into ours."""
        try:
            yield
        except EmbedLMError:
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                raise
            if "WouldBlock" in str(error):
                raise JobError(
                    f"another process has the index at {self.path} open; ask that process, or "
                    "wait until it ends"
                ) from error
            if any(sign in str(error) for sign in _FULL):
                raise JobError(
                    f"no space left while writing the index at {self.path} ({str(error)[:300]}). "
                    "Make room and run the same command again"
                ) from error
            if any(sign in str(error) for sign in _LOCKED):
                raise InputError(
                    f"the store at {self.path} cannot be opened, as Qdrant Edge writes into its "
                    f"folder also where it is only searched ({str(error)[-120:]}); let this user "
                    "write there, or make the index with --store exact"
                ) from error
            made = read_json(self.path / _FACTS, InputError).get("edge_version")
            raise InputError(
                f"the store at {self.path} cannot be read or written ({str(error)[:300]}); it is "
                f"damaged, or was made by another version (qdrant-edge-py {made}; here is "
                f"{version('qdrant-edge-py')}): make the index again"
            ) from error

    def _create(self) -> None:
        api = self._api
        facts = {
            "format": FORMAT,
            "edge_version": version("qdrant-edge-py"),
            "similarity": self.similarity,
            "length_normalize": self.length_normalize,
            "first": None if self.first is None else asdict(self.first),
            "widths": self._widths,
        }
        write_json(self.path / _FACTS, facts)
        vectors: dict[str, Any] = {}
        sparse: dict[str, Any] = {}
        for head, (form, width) in self._widths.items():
            if form == "sparse":
                sparse[head] = api.EdgeSparseVectorParams()
            elif form == "tokens":
                vectors[head] = api.EdgeVectorParams(
                    size=width,
                    distance=api.Distance.Dot,
                    multivector_config=api.MultiVectorConfig(api.MultiVectorComparator.MaxSim),
                    hnsw_config=api.HnswIndexConfig(m=0, ef_construct=16, full_scan_threshold=10),
                )
            else:
                vectors[head] = self._dense_config(width)
        if self.first is not None and self.first.kind == "short":
            vectors[FIRST] = api.EdgeVectorParams(size=self.first.dim, distance=api.Distance.Dot)
        with self._told():
            self._shard = api.EdgeShard.create(
                str(self.path / _SHARD),
                api.EdgeConfig(vectors=vectors or None, sparse_vectors=sparse or None),
            )

    def _dense_config(self, width: int | None) -> Any:
        api = self._api
        more: dict[str, Any] = {}
        if self.first is not None and self.first.kind == "binary":
            more["quantization_config"] = api.BinaryQuantizationConfig()
        if self.first is not None and self.first.kind == "short":  # only candidates are compared
            more["hnsw_config"] = api.HnswIndexConfig(m=0, ef_construct=16, full_scan_threshold=10)
        return api.EdgeVectorParams(
            size=width, distance=getattr(api.Distance, _DISTANCES[self.similarity]), **more
        )

    def _upsert(self, points: list[Any]) -> None:
        size = sum(4 * (width or 0) for form, width in self._widths.values() if form == "dense")
        check_space(self.path, len(points) * (size + 4096), "edge")
        with self._told():
            self._shard.update(self._api.UpdateOperation.upsert_points(points))

    def _delete(self, points: list[str]) -> None:
        with self._told():
            self._shard.update(self._api.UpdateOperation.delete_points(points))

    def _replace(self, head: str, values: Mapping[str, Any]) -> None:
        api = self._api
        gone = [point for point, value in values.items() if value is None]
        held = [
            api.PointVectors(point, {head: value})
            for point, value in values.items()
            if value is not None
        ]
        with self._told():
            if held:
                self._shard.update(api.UpdateOperation.update_vectors(held))
            if gone:
                self._shard.update(api.UpdateOperation.delete_vectors(gone, [head]))

    def _point(self, id: str, vectors: dict[str, Any], payload: dict[str, Any]) -> Any:
        return self._api.Point(id, vectors, payload)

    def _query(self, query: Any, using: str, limit: int, more: Mapping[str, Any]) -> list[Any]:
        api, options = self._api, dict(more)
        if (first := options.pop("first", None)) is not None:
            short, count, where = first
            nearest = api.Query.Nearest(short, using=FIRST)
            options["prefetches"] = [api.Prefetch(limit=count, query=nearest, filter=where)]
        with self._told():
            found: list[Any] = self._shard.query(
                api.QueryRequest(
                    limit=limit,
                    query=api.Query.Nearest(query, using=using),
                    with_payload=True,
                    **options,
                )
            )
        return found

    def stored(self, ids: Sequence[str], heads: Sequence[str]) -> dict[str, Any]:
        """Return the vectors of some documents, which are all present, by head."""
        points = list({point_id(one): None for one in ids})
        with self._told():
            records = self._shard.retrieve(points, with_payload=True, with_vector=True)
        held = {record.payload["id"]: record.vector for record in records}
        vectors = [dict(held[one]) for one in ids]
        return {
            head: gathered(form, width or 0, [own.get(head) for own in vectors])
            for head, (form, width) in self._widths.items()
            if head in heads
        }

    def scroll(self) -> Iterator[StoredPoint]:
        """Yield all documents with their vectors, in the order of their points."""
        offset = None
        while self._shard is not None:
            with self._told():
                records, offset = self._shard.scroll(
                    self._api.ScrollRequest(
                        offset=offset, limit=256, with_payload=True, with_vector=True
                    )
                )
            for record in records:
                yield StoredPoint(record.payload["id"], dict(record.vector), record.payload)
            if offset is None:
                return

    def size(self) -> int:
        """Return the bytes of the folder."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def optimize(self) -> None:
        """Build the index, which makes a search fast; this can take minutes."""
        if self._shard is not None:
            check_space(self.path, self.size(), "edge")
            with self._told():
                self._shard.optimize()

    def close(self) -> None:
        """Write everything to the disk and let go of the folder; called again, do nothing.

        Of a folder that was taken away, as that of an index's generation before the present one is,
        nothing can or need be written.
        """
        shard, self._shard = self._shard, None
        if shard is None:
            return
        try:
            with self._told():
                shard.flush()
                shard.close()
        except EmbedLMError:
            if (self.path / _FACTS).is_file():
                raise
