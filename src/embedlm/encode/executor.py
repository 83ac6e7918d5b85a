"""Runs passes of a backbone, and learns how to run them best.

A backbone never changes. What is learnt while it runs (how many tokens fit into the memory, whether
compiling its layers pays) lies here, once for all embedders of a network.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedlm.backbone import Backbone
from embedlm.backbone.images import Pixels
from embedlm.backbone.layout import Kept
from embedlm.backbone.memory import free_memory, is_out_of_memory
from embedlm.backbone.network import Rows
from embedlm.encode.compiling import Compiling, Mode
from embedlm.encode.prefix_cache import PrefixCache
from embedlm.errors import EmbedLMError, UnsupportedError
from embedlm.vision.reader import ImageReader, open_reader

__all__ = ["Executor", "default_budget"]

log = logging.getLogger(__name__)

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


class _Ahead(threading.local):
    tokens = 0


class Executor:
    """Runs one backbone for any number of embedders and threads."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        # With switchable adapters, each of them would be compiled anew.
        compilable = (
            backbone.packs
            and backbone.adapters is None
            and not backbone.sharded
            and backbone.length_rope is None
        )
        self.compiling = Compiling(backbone) if compilable else None
        self.prefixes: PrefixCache | None = None
        """Of all calls; None: each call keeps what its own texts share, and no longer."""
        self._fits: int | None = None
        self._told_shortened = False
        self._lock = threading.Lock()
        self._ahead = _Ahead()

    def tell_shortened(self, tokens: int) -> None:
        """Say once for this network that texts are longer than what it reads."""
        with self._lock:
            told, self._told_shortened = self._told_shortened, True
        if not told:
            log.warning(
                "a text is longer than the %d tokens that the model reads, prompt and all, and is "
                "shortened; this is said once, for all such texts. Cut texts into passages, or set "
                "max_length (--max-length) if this is meant",
                tokens,
            )

    @cached_property
    def image_reader(self) -> ImageReader:
        """What reads images for the network; opened when the first one is given."""
        return open_reader(self.backbone)

    # -- passes -------------------------------------------------------------------------------

    def run(
        self,
        rows: Rows,
        *,
        prefix: int = 0,
        layers: tuple[int, ...] = (-1,),
        unseen: Sequence[int] = (),
        kept: Kept | None = None,
        positions: Rows | None = None,
        adapter: str | None = None,
        causal: bool | None = None,
        apart: bool = False,
        images: Sequence[Pixels] = (),
        compiled: bool = True,
    ) -> Tensor:
        """Return what `Backbone.run` returns for these arguments, compiled where that pays.

        `compiled` is false for a pass on one core of several: compiled layers take all of them.
        """

        def run_by(backbone: Backbone) -> Tensor:
            return backbone.run(
                rows,
                prefix=prefix,
                layers=layers,
                unseen=unseen,
                kept=kept,
                positions=positions,
                adapter=adapter,
                causal=causal,
                apart=apart,
                images=images,
            )

        compiling, tokens = self.compiling, sum(map(len, rows)) - prefix * (len(rows) - 1)
        if kept is not None and kept.states is not None:
            tokens -= prefix
        padded = any(unseen) or len(images) > 0
        if compiling is None or not compiled or padded or not compiling.suits(tokens):
            return run_by(self.backbone)
        chosen = compiling.chosen(self._ahead.tokens)
        self._ahead.tokens = max(0, self._ahead.tokens - tokens)
        if chosen is self.backbone:
            start = compiling.begin()
            states_TD = run_by(chosen)
            compiling.took(tokens, start)
            return states_TD
        try:
            return run_by(chosen)
        except Exception as error:
            if isinstance(error, EmbedLMError) or is_out_of_memory(error):
                raise
            compiling.give_up(error)
        return run_by(self.backbone)

    # -- kernels ------------------------------------------------------------------------------

    def expect(self, tokens: int) -> None:
        """Say how many tokens this thread's job has still to run: compiling may pay for many."""
        self._ahead.tokens = tokens

    def repays_compiling(self, tokens: int) -> bool:
        """Tell whether a job of so many tokens would be faster with compiled layers."""
        return self.compiling is not None and self.compiling.worth(tokens)

    @contextmanager
    def fixed(self, mode: Mode) -> Iterator[None]:
        """Run a job on kernels that are chosen at its start, not by the time it has taken."""
        if self.compiling is None:
            yield
            return
        before = self.compiling.mode
        try:
            self.compiling.settle(mode)
            yield
        finally:
            self.compiling.mode = before

    @property
    def compiled(self) -> bool:
        """Whether layers are compiled, or are asked to be."""
        return self.compiling is not None and (self.compiling.active or self.compiling.mode == "on")

    def lay_out(self) -> None:
        """Lay the weights out for products before several threads or processes run them."""
        if self.compiling is not None:
            self.compiling.lay_out()

    def plain(self) -> Backbone:
        """Return the backbone with plain weights, and keep it so: to be trained, or taken apart."""
        if self.compiling is not None:
            self.compiling.settle("plain")
        return self.backbone

    def unpack(self) -> None:
        """Lay the weights out plainly, to be copied or written; the next pass may pack them."""
        if self.compiling is not None:
            self.compiling.stop()

    def save(self, folder: Path) -> None:
        """Write the backbone; packed weights are unpacked first, rather than held twice."""
        self.unpack()
        self.backbone.save(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy the backbone and settings: locks stay, and what compiling gains is measured anew.

        Raises:
            UnsupportedError: the weights are in 8 bits, and lie in no tensor that can be copied.
        """
        if self.backbone.quantised:
            raise UnsupportedError(
                f"{self.backbone.name!r} runs in {self.backbone.quantised}, which cannot be copied "
                "or pickled; load it in another dtype"
            )
        return _copied, (self.backbone, 0 if self.prefixes is None else self.prefixes.limit)

    def keep_prefixes(self, limit: int) -> None:
        """Keep up to `limit` bytes of the prefixes that calls share (causal only); 0: none."""
        shares = self.backbone.shares_prefixes
        self.prefixes = PrefixCache(limit) if limit and shares else None

    # -- memory -------------------------------------------------------------------------------

    def budget(self, tokens: int | None = None) -> int:
        """Return how many tokens run at once, given how many were asked for (None: a default)."""
        limit = default_budget(self.backbone) if tokens is None else tokens
        return limit if self._fits is None else min(limit, self._fits)

    def did_not_fit(self, tokens: int) -> int:
        """Remember that so many tokens were too many for the memory; return how many run now."""
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        with self._lock:
            self._fits = max(1, min(tokens, self._fits or tokens) // 2)
            return self._fits


def _copied(backbone: Backbone, prefix_bytes: int) -> Executor:
    """Return an executor that keeps as many bytes of prefixes as the one that was copied."""
    executor = Executor(backbone)
    executor.keep_prefixes(prefix_bytes)
    return executor
