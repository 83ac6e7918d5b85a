"""Compiling layers where the job is long enough to repay it, by what it has been measured to cost.

Compilation fuses the element-wise work between the matrix products. It costs some seconds once.
What it cost and what it saved the last time is kept in the user's cache folder; where nothing is
kept, a careful guess stands in. Layers are compiled once the time that has been spent without it,
and the time that the job at hand will still take, would have saved more than that: whatever comes
after, not much more than twice the best possible time is spent. A job that must give the same bits
when it is run in parts decides at its start instead.

Kernels are tuned to the sizes that are seen first: they are compiled on sizes of this module's own
choice, which are measured too.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from torch import nn

from embedlm.backbone import prepacked
from embedlm.jobs.json_files import write_json
from embedlm.jobs.user_cache import user_cache

__all__ = ["Compiling", "Costs", "Mode"]

log = logging.getLogger(__name__)

LEAST = 512
"""Tokens from which a pack runs compiled on a CPU: smaller ones gain little there. On an
accelerator launching a kernel costs as much for a single query: all packs run compiled."""
TRIAL = 1024
"""Tokens of a trial: smaller ones gain less than the packs of a job do."""
PAIRS = 2
"""Trials with and without, in turn, of which the better ones count: there is other work."""
RETRY = 24 * 3600.0
"""Seconds after which a compilation that gained nothing may be tried again."""

Mode = Literal["auto", "on", "off", "plain"]


@dataclass(frozen=True, slots=True)
class Costs:
    """What compiling costs, and what it saves."""

    seconds: float = 30.0
    """Until the first compiled pass has ended."""
    share: float = 0.2
    """Of the time without it."""
    at: float = field(default_factory=time.time, compare=False)
    """When that was measured, by the clock of time.time."""

    @classmethod
    def kept(cls, key: str) -> Costs:
        """Return what was measured for such layers, else the mean of others, else a guess."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            every = json.loads(_file().read_text(encoding="utf-8"))
            found = {
                name: cls(float(one["seconds"]), float(one["share"]), float(one.get("at", 0)))
                for name, one in every.items()
            }
            own = found.get(key)
            if own is not None and (own.share > 0 or own.at > time.time() - RETRY):
                return own
            gains = [one for one in found.values() if one.share > 0]
            return cls(fmean(one.seconds for one in gains), fmean(one.share for one in gains))
        return cls()

    def repaid_by(self, seconds: float) -> bool:
        """Tell whether so much work without compiling would have saved more than it costs."""
        return seconds * self.share > self.seconds

    def keep(self, key: str) -> None:
        """Write what was measured; nothing is lost where that is not possible."""
        file = _file()
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            every = {}
            with suppress(OSError, ValueError):
                every = json.loads(file.read_text(encoding="utf-8"))
            write_json(file, {**every, key: asdict(self)}, indent=1, shared=True)


def _file() -> Path:
    return user_cache() / "compiling.json"


@dataclass(slots=True)
class Pace:
    """How long so many tokens took."""

    seconds: float = 0.0
    tokens: int = 0

    @property
    def of_one(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens


class Compiling:
    """Whether a model's layers run compiled, and on packed weights.

    `mode` is auto, on, off (packed weights, not compiled) or plain (neither: for training, and
    where a job is too small to gain).
    """

    def __init__(self, layers: nn.ModuleList, trial: Callable[[int], object], key: str) -> None:
        """Keep what is needed.

        Args:
            layers: the model's.
            trial: runs about that many made-up tokens through them.
            key: names layers of this kind, dtype and device.
        """
        self.layers = layers
        self._device = next(layers.parameters()).device
        self.mode: Mode = "auto"
        self.active = self.packed = False
        self.ahead = 0
        """Tokens that the job at hand has still to run, as far as is known."""
        self.key = f"{key}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        self._trial = trial
        self._failed = self._trying = False
        self._plain = Pace()
        self._known: Costs | None = None

    def suits(self, tokens: int) -> bool:
        """Tell whether a pack of this size may run compiled."""
        return tokens >= LEAST or self._device.type == "cuda"

    def settle(self, mode: Mode) -> None:
        """Fix the kernels now: what follows gives the same bits whatever was run before."""
        self.mode = mode
        self._prepare()

    def worth(self, tokens: int) -> bool:
        """Tell whether that many tokens would repay compiling, after a trial where needed."""
        if self.mode != "auto" or self._failed:
            return self.mode == "on" and not self._failed
        if not self._plain.tokens:
            self._prepare()
            self._plain = Pace(min(self._once() for _ in range(PAIRS)), TRIAL)
        return self._costs().repaid_by(tokens * self._plain.of_one)

    @contextmanager
    def step(self, tokens: int) -> Iterator[None]:
        """Time one forward pass of so many tokens, compiling before it if that is due."""
        if self._trying:
            yield
            return
        if not torch.is_grad_enabled():
            self._prepare()
        start = time.perf_counter()
        yield
        self.ahead = max(0, self.ahead - tokens)
        if not self.active:
            if self._device.type == "cuda" and self.mode == "auto":
                torch.cuda.synchronize(self._device)  # else launching alone would be timed
            self._plain.seconds += time.perf_counter() - start
            self._plain.tokens += tokens

    def _prepare(self) -> None:
        if self.mode == "plain":
            if self.packed or self.active:
                self.stop()
            return
        if self.active and self.mode == "off":
            self._plain_layers()
        if not self.packed:
            prepacked.pack(self.layers)
            self.packed = True
        if not self.active and not self._failed and self._due():
            self._start()

    def _due(self) -> bool:
        if self.mode != "auto" or not self._plain.tokens:
            return self.mode == "on"
        ahead = self.ahead * self._plain.of_one
        return self._costs().repaid_by(self._plain.seconds + ahead)

    def _costs(self) -> Costs:
        if self._known is None:
            self._known = Costs.kept(self.key)
        return self._known

    def _start(self) -> None:
        start = time.perf_counter()
        for layer in self.layers:
            layer.compile(dynamic=True)
        self.active = True
        self._once()
        if self._failed:  # and was given up: nothing was measured
            return
        first = time.perf_counter() - start
        before, after = self._compare()
        found = Costs(first, 1 - after / before)
        log.info("layers compiled in %.1f s, which saves %.0f %%", first, 100 * found.share)
        found.keep(self.key)
        self._known = found
        if found.share <= 0 and self.mode == "auto":
            self._failed = True
            self._plain_layers()

    def _compare(self) -> tuple[float, float]:
        """Return the seconds of a trial without and with compiled layers."""
        pairs = []
        for _ in range(PAIRS):
            with torch.compiler.set_stance("force_eager"):
                plain = self._once()
            pairs.append((plain, self._once()))
        before, after = map(min, zip(*pairs, strict=True))
        return before, after

    @torch.inference_mode()
    def _once(self) -> float:
        self._trying = True
        start = time.perf_counter()
        try:
            self._trial(TRIAL)
        finally:
            self._trying = False
        return time.perf_counter() - start

    def _plain_layers(self) -> None:
        for layer in self.layers:
            layer._compiled_call_impl = None
        self.active = False

    def stop(self) -> None:
        """Go back to plain layers with plain weights."""
        self._plain_layers()
        prepacked.unpack(self.layers)
        self.packed = False

    def give_up(self, error: Exception) -> bool:
        """Go on uncompiled after a failure; tell whether that can help."""
        if not self.active:
            return False
        log.warning("layers run uncompiled, because compiling failed: %s", str(error)[:200])
        self._failed = True
        self._plain_layers()
        return True
