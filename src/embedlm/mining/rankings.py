"""Ranked lists of candidates: by an embedder, by BM25, by several fused, then by a re-ranker.

Shapes: Q queries of a block, R some of them, K depth, D width, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedlm.bulk import encode_file
from embedlm.encode.identity import identity
from embedlm.errors import UnsupportedError
from embedlm.jobs import disk_errors, write_file
from embedlm.jobs.manifest import facts_digest
from embedlm.mining.corpus import Corpus
from embedlm.mining.dense import VectorFile, nearest, pair_scores, prepared
from embedlm.mining.words import K1, B, WordIndex
from embedlm.search.fusion import DEPTH, rrf

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Block", "DenseMiner", "Miner", "Rankings", "WordMiner"]

Places = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_PAIRS = 1 << 14
"""Pairs that are scored at once."""


@dataclass(slots=True)
class Block:
    """Queries that are worked on together."""

    queries: list[str]
    instructions: list[str | None]
    vectors: dict[int, Floats] = field(default_factory=dict)
    """The queries' vectors, by the miner's `id()`."""
    reranked: dict[tuple[int, int], float] = field(default_factory=dict)
    """Scores by the re-ranker of (query, place)."""


class Miner(Protocol):
    """Ranks the passages of a corpus."""

    name: str

    def identity(self) -> dict[str, Any]:
        """Return what decides its lists, for the manifest of a job."""

    def prepare(self, corpus: Corpus, folder: Path, show_progress: bool | None) -> None:
        """Make vectors or an index of the corpus, unless they are in the folder."""

    def best(self, block: Block, rows: Places, depth: int) -> tuple[Places, Floats]:
        """Return places (R, K) and scores (R, K), best first; where a list ends, -1 and -inf."""

    def scores(self, block: Block, rows: Places, places: Places) -> Floats:
        """Return the score of each (query, passage), (P,)."""

    def text_scores(self, block: Block, rows: Places, texts: Sequence[str]) -> Floats:
        """Return the score of each (query, text), (P,), as if the text were a passage."""


class DenseMiner:
    """Ranks by the vectors of an embedder."""

    def __init__(self, model: Embedder, instruction: str | None = None) -> None:
        """Take a model.

        Args:
            model: has a dense head.
            instruction: of the queries; None takes the recipe's.

        Raises:
            UnsupportedError: the recipe has no dense head.
            TemplateError: an instruction, and the recipe takes none.
        """
        if not any(head.kind == "dense" for head in model.recipe.heads):
            raise UnsupportedError(
                f"the recipe {model.recipe.name!r} has no dense head; mining by an embedder needs "
                "one, so name another model or recipe"
            )
        self.model, self.instruction = model, instruction
        self.name = f"dense:{model.name}"
        self.similarity = str(model.recipe.similarity)
        if instruction is not None:
            model.render(["a"], role="query", instruction=instruction)
        for role in ("query", "document"):  # told now, not when all passages are embedded
            model.route(role).renderer.check_room(role)
        self._vectors: VectorFile | None = None
        self._home: Path | None = None
        """Where the vectors are; those of queries, too."""

    def identity(self) -> dict[str, Any]:
        """Return the content of the model and how queries are written."""
        return {
            "kind": "dense",
            "model": facts_digest(identity(self.model, with_head=False)),
            "instruction": self.instruction,
        }

    @property
    def takes_instructions(self) -> bool:
        """Whether the recipe has a place for an instruction of a query."""
        return self.model.takes_instruction("query")

    def prepare(self, corpus: Corpus, folder: Path, show_progress: bool | None) -> None:
        """Encode the corpus into a file, named by the content of model and texts."""
        if self.model.readout.unfitted:  # a copy: the caller's may mine another corpus
            copy = self.model.with_recipe(self.model.recipe)
            self.model = copy.fit([line["text"] for line in corpus.lines])
        facts = identity(self.model, with_head=False)
        home = folder / f"vectors-{facts_digest({'texts': corpus.lines.digest, **facts})}"
        home.mkdir(exist_ok=True)
        encode_file(
            self.model,
            corpus.lines.path,
            home / "document.npy",
            role="document",
            heads=["dense"],
            note=home / "done.json",
            show_progress=show_progress,
        )
        self._vectors, self._home = VectorFile(home / "document.npy"), home

    def best(self, block: Block, rows: Places, depth: int) -> tuple[Places, Floats]:
        """Compare the queries with every passage; see `Miner.best`."""
        depth = min(depth, len(self.vectors))
        return nearest(self._queries(block)[rows], self.vectors, depth, self.similarity)

    def scores(self, block: Block, rows: Places, places: Places) -> Floats:
        """Compare the queries with some passages; see `Miner.scores`."""
        q_QD, parts = self._queries(block), [np.empty(0, np.float32)]
        for at in range(0, len(rows), _PAIRS):
            some = slice(at, at + _PAIRS)
            d_PD = prepared(self.vectors.take(places[some]), self.similarity)
            parts.append(pair_scores(q_QD[rows[some]], d_PD, self.similarity))
        return np.concatenate(parts)

    def text_scores(self, block: Block, rows: Places, texts: Sequence[str]) -> Floats:
        """Compare the queries with texts; see `Miner.text_scores`."""
        if not texts:
            return np.empty(0, np.float32)
        d_PD = self._encode(list(texts), role="document")
        return pair_scores(self._queries(block)[rows], d_PD, self.similarity)

    @property
    def vectors(self) -> VectorFile:
        """The vectors of the corpus."""
        assert self._vectors is not None
        return self._vectors

    def _queries(self, block: Block) -> Floats:
        if id(self) not in block.vectors:
            options: dict[str, Any] = {"role": "query", "instruction": self.instruction}
            if any(one is not None for one in block.instructions) and self.takes_instructions:
                own = self.instruction
                if own is None:
                    own = self.model.route("query").renderer.instruction("query")
                options["instruction"] = [own if one is None else one for one in block.instructions]
            block.vectors[id(self)] = self._kept(block.queries, options)
        return block.vectors[id(self)]

    def _kept(self, queries: list[str], options: dict[str, Any]) -> Floats:
        """Return the vectors of a block's queries, from the work folder where they are there."""
        if self._home is None:
            return self._encode(queries, **options)
        key = facts_digest({"queries": queries, **options})
        path = self._home / f"queries-{key}.npy"
        try:
            found: Floats = np.load(path, allow_pickle=False)
            if len(found) == len(queries):
                return found
        except (OSError, ValueError, EOFError):  # not there, or damaged
            pass
        vectors = self._encode(queries, **options)
        with disk_errors(path, "What was mined is kept"):
            write_file(path, lambda file: np.save(file, vectors))
        return vectors

    def _encode(self, texts: list[str], **options: Any) -> Floats:
        vectors = self.model.encode(texts, heads="dense", show_progress=False, **options)
        return prepared(vectors, self.similarity)


class WordMiner:
    """Ranks by BM25."""

    name = "bm25"

    def __init__(self) -> None:
        self._index: WordIndex | None = None

    def identity(self) -> dict[str, Any]:
        """Return the constants."""
        return {"kind": "bm25", "k1": K1, "b": B}

    def prepare(self, corpus: Corpus, folder: Path, show_progress: bool | None) -> None:
        """Index the corpus' words."""
        texts = (line["text"] for line in corpus.lines)
        self._index = WordIndex.build(texts, folder / f"words-{corpus.lines.digest[:16]}")

    @property
    def index(self) -> WordIndex:
        """The index of the corpus."""
        assert self._index is not None
        return self._index

    def best(self, block: Block, rows: Places, depth: int) -> tuple[Places, Floats]:
        """Rank the passages that share a word with the query; see `Miner.best`."""
        places_RK = np.full((len(rows), depth), -1, np.int64)
        scores_RK = np.full((len(rows), depth), -np.inf, np.float32)
        for at, row in enumerate(rows):
            places, scores = self.index.best(block.queries[row], depth)
            places_RK[at, : len(places)] = places
            scores_RK[at, : len(places)] = scores
        return places_RK, scores_RK

    def scores(self, block: Block, rows: Places, places: Places) -> Floats:
        """Score some passages; see `Miner.scores`."""
        found = np.empty(len(rows), np.float32)
        for row in np.unique(rows):
            mine = rows == row
            found[mine] = self.index.scores(block.queries[row])[places[mine]]
        return found

    def text_scores(self, block: Block, rows: Places, texts: Sequence[str]) -> Floats:
        """Score texts; see `Miner.text_scores`."""
        pairs = zip(rows, texts, strict=True)
        return np.array(
            [self.index.score(block.queries[row], text) for row, text in pairs], np.float32
        )


class Rankings:
    """The list of candidates of each query.

    Several miners' lists, each to a depth of 1,000, are fused by reciprocal ranks (Cormack et al.,
    SIGIR 2009); scores are then those of the first embedder. A re-ranker puts the first `rerank`
    candidates of a list in its own order.
    """

    def __init__(
        self, miners: Sequence[Miner], corpus: Corpus, reranker: Any = None, rerank: int = 0
    ) -> None:
        self.miners, self.corpus = list(miners), corpus
        dense = (miner for miner in self.miners if isinstance(miner, DenseMiner))
        self.scorer = next(dense, self.miners[0])
        """The miner whose scores the filters compare."""
        self.reranker, self.rerank = reranker, rerank

    def best(self, block: Block, rows: Places, depth: int) -> tuple[Places, Floats]:
        """Return places (R, K) and the scorer's scores (R, K); where a list ends, -1 and -inf."""
        reach = max(depth, min(self.rerank, len(self.corpus)))
        if len(self.miners) == 1:
            places_RK, scores_RK = self.scorer.best(block, rows, reach)
        else:
            places_RK = self._fused(block, rows)[:, :reach]
            scores_RK = np.full(places_RK.shape, -np.inf, np.float32)
            there = places_RK >= 0
            of = np.repeat(rows, there.sum(1))
            scores_RK[there] = self.scorer.scores(block, of, places_RK[there])
        if self.rerank:
            self._reorder(block, rows, places_RK, scores_RK)
        return places_RK[:, :depth], scores_RK[:, :depth]

    def _fused(self, block: Block, rows: Places) -> Places:
        lists = [miner.best(block, rows, min(DEPTH, len(self.corpus))) for miner in self.miners]
        width = min(len(self.corpus), sum(places.shape[1] for places, _ in lists))
        fused_RK = np.full((len(rows), width), -1, np.int64)
        for at in range(len(rows)):
            found = [places_RK[at][places_RK[at] >= 0] for places_RK, _ in lists]
            shares = [rrf(np.empty(len(places), np.float64)) for places in found]
            places, inverse = np.unique(np.concatenate(found), return_inverse=True)
            total = np.bincount(inverse, np.concatenate(shares), len(places))
            order = np.argsort(-total, kind="stable")
            fused_RK[at, : len(places)] = places[order]
        return fused_RK

    def _reorder(self, block: Block, rows: Places, places_RK: Places, scores_RK: Floats) -> None:
        for at, row in enumerate(rows):
            head = places_RK[at, : self.rerank]
            head = head[head >= 0]
            order = np.argsort(-self.rerank_scores(block, int(row), head), kind="stable")
            places_RK[at, : len(head)] = head[order]
            scores_RK[at, : len(head)] = scores_RK[at, : len(head)][order]

    def rerank_scores(self, block: Block, row: int, places: Places) -> npt.NDArray[np.float64]:
        """Return the re-ranker's logits of passages for a query; each is read once."""
        new = [int(place) for place in places if (row, int(place)) not in block.reranked]
        if new:
            texts = [self.corpus.text(place) for place in new]
            found = self.reranker.score(block.queries[row], texts, probability=False)
            block.reranked |= {(row, p): float(s) for p, s in zip(new, found, strict=True)}
        return np.array([block.reranked[row, int(place)] for place in places])
