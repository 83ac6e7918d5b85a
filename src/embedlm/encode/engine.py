"""From texts to the heads' outputs: dedupe, render ahead, plan, run, put back in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone import Backbone
from embedlm.backbone.attention import Kept
from embedlm.backbone.memory import free_memory, is_out_of_memory
from embedlm.encode.ids import as_rendered
from embedlm.encode.plan import DEPTH, PACK_COST, PACK_COST_CUDA, Pack, plan
from embedlm.encode.prefixes import Prefixes
from embedlm.encode.run import Output, layers_of, needs_segments, run_pack
from embedlm.errors import JobError
from embedlm.prompt.render import RenderedBatch, Renderer, Request
from embedlm.readout.latent import LatentAttention
from embedlm.readout.projection import Projection
from embedlm.readout.sparse import SparseRow, text_token_ids
from embedlm.readout.token_layers import TokenLayers
from embedlm.schema.recipe import Dense, Head, MultiVector, Pooling, Sparse

log = logging.getLogger(__name__)

__all__ = ["Engine", "Results", "default_budget"]

T = TypeVar("T")

CHUNK = 2048
"""Texts rendered at once, while the chunk before is run."""
SHARE = 0.25
"""Of an accelerator's free memory that the activations of a pack may take."""


def default_budget(backbone: Backbone) -> int:
    """Return how many tokens run at once by default.

    On a CPU: as many as make products efficient, and no more than leave a layer's activations near
    its caches. On an accelerator: as many as a share of its free memory holds, a power of two, so
    that it is the same from run to run.
    """
    if backbone.device.type != "cuda":
        return 1536
    config = backbone.text_config
    wide = getattr(config, "intermediate_size", None) or 4 * backbone.dim
    bytes_of_one = backbone.dtype.itemsize * (8 * backbone.dim + 3 * wide)
    free = free_memory(backbone.device) or 0
    fits = max(1, int(SHARE * free / bytes_of_one))
    return max(1024, min(32_768, 1 << (fits.bit_length() - 1)))


def _behind(packs: Iterator[T]) -> Iterator[T]:
    """Yield each one when the next is under way: an accelerator does not wait for the copy."""
    before = next(packs, None)
    for one in packs:
        assert before is not None
        yield before
        before = one
    if before is not None:
        yield before


@dataclass(slots=True)
class Results:
    """The outputs of distinct texts, in the order they were given."""

    dense: npt.NDArray[np.float32] | None
    sparse: list[list[SparseRow]]
    multi_vector: list[npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Job:
    """One text to embed, maybe one of several whose outputs are averaged."""

    text: str | tuple[int, ...]
    """Or its token ids, which are run as they are."""
    instruction: str | None
    target: int
    share: float
    """Weight of this text in its target's average."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Runs jobs through a backbone by a recipe's prompt, pooling and heads."""

    backbone: Backbone
    renderer: Renderer
    pooling: Pooling
    heads: tuple[Head, ...]
    budget: int
    weight_V: npt.NDArray[np.float32] | None = None
    projection: Projection | None = None
    latent: LatentAttention | None = None
    token_layers: TokenLayers | None = None

    @property
    def width(self) -> int:
        """Width of a dense vector."""
        projected = any(isinstance(h, Dense) and h.projection == "auto" for h in self.heads)
        if projected and self.projection is not None:
            return self.projection.out_features
        return self.backbone.dim

    def run(
        self,
        jobs: Sequence[Job],
        targets: int,
        request: Request,
        progress: Callable[[int], object] = lambda _: None,
    ) -> Results:
        """Return the outputs of all targets.

        Args:
            jobs: what to embed; the shares of one target's jobs add up to 1.
            targets: how many outputs there are.
            request: role, demonstrations and limit.
            progress: told the number of jobs finished.
        """
        wants = {head.kind for head in self.heads}
        dense = np.zeros((targets, self.width), np.float32) if "dense" in wants else None
        sparse: list[list[SparseRow]] = [[] for _ in range(targets)] if "sparse" in wants else []
        multi: list[npt.NDArray[np.float32]] = (
            [np.empty((0, 0), np.float32)] * targets if "multi_vector" in wants else []
        )
        # Chunks of like length make packs with little waste and runs of equal lengths.
        ordered = sorted(jobs, key=lambda job: len(job.text))
        chunks = [ordered[i : i + CHUNK] for i in range(0, len(ordered), CHUNK)]
        # What a sharded layer joins is kept for training, and must be no inference tensor.
        with torch.no_grad() if self.backbone.sharded else torch.inference_mode():
            sizes = [sum(len(job.text) for job in chunk) for chunk in chunks]
            for place, (chunk, batches, allowed) in enumerate(self._rendered(chunks, request)):
                later = len(batches) * sum(sizes[place + 1 :]) / max(1, sizes[place])
                target_C = np.array([job.target for job in chunk], dtype=np.int64)
                share_C1 = np.array([[job.share] for job in chunk], dtype=np.float32)
                for number, batch in enumerate(batches):
                    like = later + len(batches) - number
                    packs = self._packs(batch, allowed, request.role, like)
                    for items, output in _behind(packs):
                        to = target_C[items]
                        if dense is not None and output.dense is not None:
                            vectors = output.dense.cpu().numpy()
                            np.add.at(dense, to, share_C1[items] / len(batches) * vectors)
                        for row, target in enumerate(to.tolist() if sparse or multi else ()):
                            if sparse:
                                sparse[target].append(output.sparse[row])
                            if multi:
                                multi[target] = output.multi_vector[row]
                        progress(len(items) if batch is batches[-1] else 0)
        return Results(dense, sparse, multi)

    def _rendered(
        self, chunks: list[list[Job]], request: Request
    ) -> Iterator[tuple[list[Job], list[RenderedBatch], list[npt.NDArray[np.int64]] | None]]:
        """Yield rendered chunks, the next one being rendered meanwhile."""
        if len(chunks) == 1:
            yield self._render(chunks[0], request)
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._render, chunks[0], request) if chunks else None
            for index in range(len(chunks)):
                assert ahead is not None
                ready = ahead.result()
                if index + 1 < len(chunks):
                    ahead = pool.submit(self._render, chunks[index + 1], request)
                yield ready

    def _render(
        self, chunk: list[Job], request: Request
    ) -> tuple[list[Job], list[RenderedBatch], list[npt.NDArray[np.int64]] | None]:
        rows = [job.text for job in chunk if not isinstance(job.text, str)]
        if rows:
            batch, may = as_rendered(rows, chunk[0].instruction, request, self.backbone)
            limited = any(isinstance(h, Sparse) and h.restrict == "text" for h in self.heads)
            return chunk, [batch], may if limited else None
        own = [job.instruction for job in chunk]
        instructions = None if own[0] is None else [str(one) for one in own]
        texts = [str(job.text) for job in chunk]
        segments = needs_segments(self.pooling, self.heads)
        batches = self.renderer.render(texts, request, instructions, segments=segments)
        allowed = None
        for head in self.heads:
            if isinstance(head, Sparse) and head.restrict == "text":
                allowed = text_token_ids(texts, self.backbone.tokenizer, head.stop_words)
        return chunk, batches, allowed

    def _skipped(self, role: str | None) -> npt.NDArray[np.int64]:
        """Return the ids of tokens without a vector of their own."""
        words = [w for h in self.heads if isinstance(h, MultiVector) for w in h.skip]
        known = self.backbone.tokenizer.get_vocab() if words and role != "query" else {}
        return np.array(sorted(known[w] for w in words if w in known), dtype=np.int64)

    def _packs(
        self,
        batch: RenderedBatch,
        allowed: list[npt.NDArray[np.int64]] | None,
        role: str | None,
        like: float,
    ) -> Iterator[tuple[npt.NDArray[np.int64], Output]]:
        """Yield a batch's outputs; from here to the job's end there is work as of `like` of it."""
        skipped = self._skipped(role)
        left: npt.NDArray[np.int64] = np.arange(len(batch.ids))
        while len(left):
            packs = self._planned(batch, left)
            self._expect(batch, packs, like)
            prefixes = Prefixes(packs, self._run_prefix)
            for done, pack in enumerate(packs):
                try:
                    output = run_pack(
                        self.backbone,
                        batch,
                        pack,
                        self.pooling,
                        self.heads,
                        allowed=allowed,
                        weight_V=self.weight_V,
                        projection=self.projection,
                        latent=self.latent,
                        token_layers=self.token_layers,
                        skipped=skipped,
                        kept=prefixes.of(pack, batch.ids[pack.items[0]]),
                    )
                except (RuntimeError, MemoryError) as error:
                    self._smaller(batch, pack, error)
                    left = np.concatenate([later.items for later in packs[done:]])
                    break
                yield pack.items, output
            else:
                return

    def _expect(self, batch: RenderedBatch, packs: list[Pack], like: float) -> None:
        """Tell what decides on compiling how much there is to run."""
        if self.backbone.compiling is not None:
            tokens = sum(
                len(batch.ids[item]) - pack.prefix for pack in packs for item in pack.items.tolist()
            )
            self.backbone.compiling.ahead = int(like * tokens)

    def _planned(self, batch: RenderedBatch, left: npt.NDArray[np.int64]) -> list[Pack]:
        """Return the packs of some of a batch's rows."""
        share = self.backbone.packs and self.backbone.causal and not batch.unseen
        budget = min(self.budget, self.backbone.budget or self.budget)
        rows = [batch.ids[item] for item in left.tolist()]
        cost = PACK_COST_CUDA if self.backbone.device.type == "cuda" else PACK_COST
        packs = plan(rows, budget, share=share, depth=DEPTH, cost=cost)
        return [replace(pack, items=left[pack.items]) for pack in packs]

    def _run_prefix(self, ids: Sequence[int], held: int, kept: Kept) -> None:
        layers = layers_of(self.pooling)
        self.backbone.packed_states([ids], prefix=held, layers=layers, kept=kept)

    def _smaller(self, batch: RenderedBatch, pack: Pack, error: Exception) -> None:
        """Remember that a pack was too large for the memory, and halve what is run at once.

        Raises:
            Exception: the error, where it is another one.
            JobError: one text alone is too large.
        """
        if not is_out_of_memory(error):
            raise error
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = sum(len(batch.ids[item]) for item in pack.items.tolist())
        if len(pack.items) == 1:
            raise JobError(
                f"a text of {tokens} tokens is too large for the memory of "
                f"{self.backbone.device}; shorten texts (max_length), take a smaller dtype or "
                "another device"
            ) from error
        own = tokens - (len(pack.items) - 1) * pack.prefix
        budget = max(1, min(own, self.backbone.budget or own) // 2)
        self.backbone.budget = budget
        log.warning("out of memory with %d tokens at once; %d from now on", own, budget)
