"""From texts to the heads' outputs: dedupe, render ahead, plan, run, put back in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone import Backbone
from embedlm.backbone.layout import Kept
from embedlm.backbone.memory import is_out_of_memory
from embedlm.encode.executor import Executor
from embedlm.encode.ids import as_rendered
from embedlm.encode.images import check_tokens, chunked, of_tower, pixels_of
from embedlm.encode.items import Share, TokenIds
from embedlm.encode.parallel import on_cores, submitted
from embedlm.encode.plan import DEPTH, PACK_COST, PACK_COST_CUDA, Pack, base_of, plan_after
from embedlm.encode.prefix_cache import SharedPrefix, Way
from embedlm.encode.prefixes import Prefixes
from embedlm.encode.rendered import joined
from embedlm.encode.run import Run, pack_states
from embedlm.errors import JobError, ModelError
from embedlm.prompt.render import RenderedBatch, Renderer, Request
from embedlm.readout import Readout
from embedlm.readout.head import Collector
from embedlm.readout.term_weights import text_token_ids

log = logging.getLogger(__name__)

__all__ = ["Engine"]

T = TypeVar("T")
Words = list[npt.NDArray[np.int64]]
Rendered = tuple[list[Share], list[RenderedBatch], Words | None]
"""The shares of a chunk, a batch for each of the recipe's prompts, and the texts' own words."""

PACKS_A_CORE = 4
"""Packs for each core, from which each pack runs on one."""
WIDTHS = (256, 1 << 20)
"""Widths of models whose packs do: of narrower ones the interpreter is the larger part."""


def _behind(packs: Iterator[T]) -> Iterator[T]:
    """Yield each one when the next is under way: an accelerator does not wait for the copy."""
    before = next(packs, None)
    for one in packs:
        assert before is not None
        yield before
        before = one
    if before is not None:
        yield before


@dataclass(frozen=True, slots=True)
class Engine:
    """Runs items through a backbone by a recipe's prompt, pooling and heads."""

    executor: Executor
    renderer: Renderer
    readout: Readout
    budget: int
    adapter: str | None = None
    """The switchable adapter that the backbone runs with; None: the base alone."""

    @property
    def backbone(self) -> Backbone:
        """What the executor runs."""
        return self.executor.backbone

    def run(
        self,
        shares: Sequence[Share],
        targets: int,
        request: Request,
        progress: Callable[[int], object] = lambda _: None,
    ) -> list[Collector]:
        """Return the outputs of all targets, a collector a head.

        Args:
            shares: the items to embed.
            targets: how many outputs there are.
            request: role, demonstrations and limit.
            progress: told the number of items finished.
        """
        collectors = self.readout.collectors(targets)
        chunks = chunked(shares)
        # What a sharded layer joins is kept for training, and must be no inference tensor.
        with torch.no_grad() if self.backbone.sharded else torch.inference_mode():
            costs = [sum(share.item.cost for share in chunk) for chunk in chunks]
            for index, (chunk, batches, words) in enumerate(self._rendered(chunks, request)):
                later = len(batches) * sum(costs[index + 1 :]) / max(1, costs[index])
                target_C = np.array([share.target for share in chunk], dtype=np.int64)
                weights = [share.weight / len(batches) for share in chunk]
                share_C = np.array(weights, dtype=np.float32)
                for number, batch in enumerate(batches):
                    like = later + len(batches) - number
                    packs = self._packs(batch, words, request.role, like)
                    for items, outputs in _behind(packs):
                        for collector, output in zip(collectors, outputs, strict=True):
                            collector.add(target_C[items], share_C[items], output)
                        progress(len(items) if batch is batches[-1] else 0)
        return collectors

    def _rendered(self, chunks: list[list[Share]], request: Request) -> Iterator[Rendered]:
        """Yield rendered chunks, the next one being rendered meanwhile."""
        if len(chunks) == 1:
            yield self._render(chunks[0], request)
            return
        with ThreadPoolExecutor(1) as pool:
            render = partial(self._render, request=request)
            ahead = submitted(pool, render, chunks[0]) if chunks else None
            for index in range(len(chunks)):
                assert ahead is not None
                ready = ahead.result()
                if index + 1 < len(chunks):
                    ahead = submitted(pool, render, chunks[index + 1])
                yield ready

    def _render(self, chunk: list[Share], request: Request) -> Rendered:
        stop_words = self.readout.stop_words
        items = [share.item for share in chunk]
        rows = [item.part.ids for item in items if isinstance(item.part, TokenIds)]
        if rows:
            batch, words = as_rendered(rows, items[0].instruction, request, self.backbone)
            return chunk, [batch], words if stop_words is not None else None
        item_instructions = [item.instruction for item in items]
        instructions = (
            None if item_instructions[0] is None else [str(text) for text in item_instructions]
        )
        texts = [item.part.text for item in items if not isinstance(item.part, TokenIds)]
        segments = self.readout.reads_segments
        ready = joined([item.part for item in items], self.renderer, request, segments=segments)
        pixels = pixels_of(items, self.executor, self.readout)
        token = self.executor.image_reader.token if pixels else ""
        if token is None:
            return chunk, [of_tower(items, pixels, request)], None
        batches = ready or self.renderer.render(
            texts,
            request,
            instructions,
            segments=segments,
            images=[token * one.tokens for one in pixels],
        )
        if pixels:
            check_tokens(batches, items, pixels, self.backbone)
        if request.max_length is None and not ready:
            self._tell_shortened(batches)
        self._check_ids(batches)
        if stop_words is None:
            return chunk, batches, None
        return chunk, batches, text_token_ids(texts, self.backbone.tokenizer, stop_words)

    def _tell_shortened(self, batches: Sequence[RenderedBatch]) -> None:
        for batch in batches:
            if True in batch.truncated:
                self.executor.tell_shortened(len(batch.ids[batch.truncated.index(True)]))

    def _check_ids(self, batches: Sequence[RenderedBatch]) -> None:
        """Refuse tokens that the embedding table has no row for.

        Raises:
            ModelError: the tokenizer is another model's.
        """
        rows = self.backbone.vocab_size
        core = self.backbone.tokenizer.backend_tokenizer
        if core.get_vocab_size(with_added_tokens=True) <= rows:
            return
        for batch in batches:
            highest = max(map(max, batch.ids))
            if highest >= rows:
                raise ModelError(
                    f"the tokenizer of {self.backbone.name!r} gives token {highest} "
                    f"({core.id_to_token(highest)!r}), and config.json has vocab_size {rows}; the "
                    "folder's tokenizer and network are not of one model"
                )

    def _packs(
        self, batch: RenderedBatch, words: Words | None, role: str | None, like: float
    ) -> Iterator[tuple[npt.NDArray[np.int64], list[Any]]]:
        """Yield a batch's outputs; from here to the job's end there is work as of `like` of it."""
        left: npt.NDArray[np.int64] = np.arange(len(batch.ids))
        while len(left):
            shared = self._kept_prefix(batch, left)
            packs = self._planned(batch, left, shared)
            self._expect(batch, packs, like)
            done = 0
            try:
                for outputs in self._outputs(batch, packs, shared, words, role):
                    yield packs[done].items, outputs
                    done += 1
                return
            except (RuntimeError, MemoryError) as error:
                self._smaller(batch, packs[done], error)
                left = np.concatenate([later.items for later in packs[done:]])

    def _outputs(
        self,
        batch: RenderedBatch,
        packs: list[Pack],
        shared: SharedPrefix | None,
        words: Words | None,
        role: str | None,
    ) -> Iterator[list[Any]]:
        """Yield the heads' outputs of each pack."""

        def outputs_of(pack: Pack, run: Run, kept: Kept | None = None) -> list[Any]:
            states = pack_states(run, self.readout, batch, pack, kept=kept, role=role, words=words)
            return self.readout.read(states)

        cores = self._cores(packs)
        if cores > 1:
            self.executor.lay_out()
            yield from on_cores(partial(outputs_of, run=self._run_by(compiled=False)), packs, cores)
            return
        lasting = None if shared is None else {base_of(shared): shared.kept}
        prefixes = Prefixes(packs, self._run_prefix, lasting)
        for pack in packs:
            kept = prefixes.of(pack, batch.ids[pack.items[0]])
            outputs = outputs_of(pack, self._run, kept)
            if shared is not None and self.executor.prefixes is not None:
                self.executor.prefixes.add(shared, self._way)
            yield outputs

    def _cores(self, packs: Sequence[Pack]) -> int:
        """Return on how many cores packs run at once; 1: each on all of them.

        There must be several for each core, or some would have nothing to do at the end.
        """
        backbone, threads = self.backbone, torch.get_num_threads()
        small = backbone.device.type == "cpu" and WIDTHS[0] <= backbone.dim <= WIDTHS[1]
        alone = not any(pack.levels for pack in packs) and not backbone.sharded
        many = len(packs) >= PACKS_A_CORE * threads
        return threads if small and alone and many and not self.executor.compiled else 1

    def _expect(self, batch: RenderedBatch, packs: list[Pack], like: float) -> None:
        """Tell what decides on compiling how much there is to run."""
        tokens = sum(
            len(batch.ids[item]) - pack.prefix for pack in packs for item in pack.items.tolist()
        )
        self.executor.expect(int(like * tokens))

    def _planned(
        self, batch: RenderedBatch, left: npt.NDArray[np.int64], shared: SharedPrefix | None
    ) -> list[Pack]:
        """Return the packs of some of a batch's rows."""
        budget = self.executor.budget(self.budget)
        rows = [batch.ids[item] for item in left.tolist()]
        sharing = {"share": self._shares(batch), "depth": DEPTH, "cost": self._pack_cost}
        packs = plan_after(rows, budget, shared, **sharing)
        return [replace(pack, items=left[pack.items]) for pack in packs]

    def _kept_prefix(
        self, batch: RenderedBatch, left: npt.NDArray[np.int64]
    ) -> SharedPrefix | None:
        """Return what is kept, or should be, of what rows begin with."""
        cache = self.executor.prefixes
        if cache is None or not self._shares(batch):
            return None
        rows = [batch.ids[item] for item in left.tolist()]
        return cache.find(rows, self._way, self._pack_cost)

    def _shares(self, batch: RenderedBatch) -> bool:
        return self.backbone.shares_prefixes and not batch.unseen and not batch.pixels

    @property
    def _way(self) -> Way:
        return Way(self.adapter, self.readout.layers, self.readout.apart)

    @property
    def _pack_cost(self) -> int:
        return PACK_COST_CUDA if self.backbone.device.type == "cuda" else PACK_COST

    @property
    def _run(self) -> Run:
        return self._run_by(compiled=True)

    def _run_by(self, *, compiled: bool) -> Run:
        return partial(
            self.executor.run,
            adapter=self.adapter,
            apart=self.readout.apart,
            compiled=compiled,
        )

    def _run_prefix(self, ids: Sequence[int], held: int, kept: Kept) -> None:
        self._run([ids], prefix=held, layers=self.readout.layers, kept=kept)

    def _smaller(self, batch: RenderedBatch, pack: Pack, error: Exception) -> None:
        """Remember that a pack was too large for the memory, and halve what is run at once.

        Raises:
            Exception: the error, where it is another one.
            JobError: one text alone is too large.
        """
        if not is_out_of_memory(error):
            raise error
        tokens = sum(len(batch.ids[item]) for item in pack.items.tolist())
        if len(pack.items) == 1:
            raise JobError(
                f"a text of {tokens} tokens is too large for the memory of "
                f"{self.backbone.device}; shorten texts (max_length), take a smaller dtype or "
                "another device"
            ) from error
        tokens_run = tokens - (len(pack.items) - 1) * pack.prefix
        budget = self.executor.did_not_fit(tokens_run)
        log.warning("out of memory with %d tokens at once; %d from now on", tokens_run, budget)
