"""Compiling layers where the job is long enough to repay it, by what it has been measured to cost.

Compilation fuses the element-wise work between the matrix products. It costs some seconds once.
What it cost and what it saved the last time is kept in the user's cache folder; where nothing is
kept, a careful guess stands in. Layers are compiled once the time that has been spent without it,
and the time that the job at hand will still take, would have saved more than that: whatever comes
after, not much more than twice the best possible time is spent. A job that must give the same bits
when it is run in parts decides at its start instead.

A fused kernel rounds once where plain layers round at each operation. In float32 that changes the
last bits; in bfloat16, float16 and 8-bit integers it changes the third digit, so that a text's
vector would depend on when it is asked for and on the size of its pack. On a CPU such layers are
therefore compiled only where that is asked for, and then for packs of any size.

Kernels are tuned to the sizes that are seen first: they are compiled on sizes of this module's own
choice, which are measured too.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from embedlm.backbone import Backbone, prepacked
from embedlm.errors import InputError
from embedlm.jobs.json_files import write_json
from embedlm.jobs.user_cache import user_cache

__all__ = ["Compiling", "Costs", "Mode"]

log = logging.getLogger(__name__)

TRIAL_ROW = 32
"""Tokens of a trial's rows."""
LEAST = 512
"""Tokens from which a pack runs compiled on a CPU: smaller ones gain little there. On an
accelerator launching a kernel costs as much for a single query: all packs run compiled."""
TRIAL = 1024
"""Tokens of a trial: smaller ones gain less than the packs of a job do."""
TRIAL_ON_CARD = 8192
"""The same on an accelerator, where launching kernels is most of what smaller ones take. A pace
measured on fewer, the first of which load the kernels, says nothing of the packs ahead."""
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
            measured = {
                name: cls(float(one["seconds"]), float(one["share"]), float(one.get("at", 0)))
                for name, one in every.items()
            }
            same = measured.get(key)
            if same is not None and (same.share > 0 or same.at > time.time() - RETRY):
                return same
            gains = [one for one in measured.values() if one.share > 0]
            return cls(fmean(one.seconds for one in gains), fmean(one.share for one in gains))
        return cls()

    def repaid_by(self, seconds: float) -> bool:
        """Tell whether so much work without compiling would have saved more than it costs."""
        return seconds * self.share > self.seconds

    def keep(self, key: str) -> None:
        """Write what was measured; nothing is lost where that is not possible."""
        with suppress(OSError, InputError):
            file = _file()
            file.parent.mkdir(parents=True, exist_ok=True)
            every: Any = {}
            with suppress(OSError, ValueError):
                every = json.loads(file.read_text(encoding="utf-8"))
            before = every if isinstance(every, dict) else {}  # damage may have made a list of it
            write_json(file, {**before, key: asdict(self)}, indent=1, shared=True)


def _file() -> Path:
    return user_cache() / "compiling.json"


@dataclass(slots=True)
class Pace:
    """How long so many tokens took."""

    seconds: float = 0.0
    tokens: int = 0

    def add(self, seconds: float, tokens: int) -> None:
        """Count a pass."""
        self.seconds += seconds
        self.tokens += tokens

    @property
    def of_one(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens


class Compiling:
    """Whether a backbone's layers run compiled, and on packed weights.

    `mode` is auto, on, off (packed weights, not compiled) or plain (neither: for training, and
    where a job is too small to gain).

    What is compiled is a twin of the backbone: passes choose between the two, and those of other
    threads go on without compiled layers while these are being made.
    """

    def __init__(self, backbone: Backbone) -> None:
        """Take a backbone that packs and has no switchable adapters."""
        self.backbone, self.compiled = backbone, backbone.twin()
        self.layers = self.compiled.layers
        self.mode: Mode = "auto"
        self.active = self.packed = False
        self.on_card = backbone.device.type == "cuda"
        self.alike = self.on_card or (
            backbone.dtype == torch.float32 and backbone.quantised is None
        )
        """Whether vectors stay what they are, to float tolerance, when layers are compiled. (On an
        accelerator the kernels of plain layers depend on the sizes, too.)"""
        self.key = _key(backbone)
        """Names layers of this kind, dtype and device."""
        self._lock = threading.RLock()
        self._counting = threading.Lock()
        """Of the pace alone: who compiles holds the other one, and passes do not wait for that."""
        self._failed = False
        self._plain = Pace()
        self._passes: deque[tuple[int, Any, Any]] = deque()
        """Passes on an accelerator that may still run: their tokens, and marks around them."""
        self._known: Costs | None = None

    def suits(self, tokens: int) -> bool:
        """Tell whether a pack of this size may run compiled."""
        if not self.alike and self.mode == "on":
            return True  # or a text's vector would depend on its company
        return tokens >= LEAST or self.on_card

    def settle(self, mode: Mode) -> None:
        """Fix the kernels now: what follows gives the same bits whatever was run before."""
        with self._lock:
            self.mode = mode
            self._prepare(0)

    def lay_out(self) -> None:
        """Lay the weights out for products, unless they are to stay plain."""
        with self._lock:
            if not self.packed and self.mode != "plain":
                prepacked.pack(self.layers)
                self.packed = True

    def worth(self, tokens: int) -> bool:
        """Tell whether that many tokens would repay compiling, after a trial where needed."""
        with self._lock:
            if self.mode != "auto" or self._failed:
                return self.mode == "on" and not self._failed
            if not self.alike:
                return False
            if not self._plain.tokens:
                self._prepare(0)
                trials = [_timed(self.backbone, self._trial) for _ in range(PAIRS)]
                self._plain = Pace(min(trials), self._trial)
            return self._costs().repaid_by(tokens * self._plain.of_one)

    def chosen(self, ahead: int) -> Backbone:
        """Return what the next pack runs through, compiling before it if that is due.

        Args:
            ahead: tokens that the job at hand has still to run, as far as is known.
        """
        if not torch.is_grad_enabled() and self._lock.acquire(blocking=False):
            try:
                self._prepare(ahead)
            finally:
                self._lock.release()
        return self.compiled if self.active else self.backbone

    def begin(self) -> Any:
        """Return what `took` is to be told: when a pass began."""
        return self._mark() if self.on_card else time.perf_counter()

    def took(self, tokens: int, start: Any) -> None:
        """Note how long a pack took without compiled layers, since `start` (of `begin`)."""
        with self._counting:
            if not self.on_card:
                self._plain.add(time.perf_counter() - start, tokens)
                return
            # What is launched has not run yet. To wait for it would leave the card idle while the
            # next pack is made ready: marks around it are read once the card has passed them.
            self._passes.append((tokens, start, self._mark()))
            while self._passes and self._passes[0][2].query():
                size, first, last = self._passes.popleft()
                self._plain.add(first.elapsed_time(last) / 1000, size)

    def _mark(self) -> Any:
        """Return an event that the device passes when it has run all that was asked for so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.backbone.device))
        return event

    def _prepare(self, ahead: int) -> None:
        if self.mode == "plain":
            if self.packed or self.active:
                self.stop()
            return
        if self.active and self.mode == "off":
            self._drop()
        self.lay_out()
        if not self.active and not self._failed and self._due(ahead):
            self._start()

    @property
    def _trial(self) -> int:
        """Tokens of a trial on this device."""
        return TRIAL_ON_CARD if self.on_card else TRIAL

    def _due(self, ahead: int) -> bool:
        if self.mode != "auto" or not self._plain.tokens:
            return self.mode == "on"
        known = not self.on_card or self._plain.tokens >= self._trial
        seconds = self._plain.seconds + (ahead * self._plain.of_one if known else 0.0)
        return self.alike and self._costs().repaid_by(seconds)

    def _costs(self) -> Costs:
        if self._known is None:
            self._known = Costs.kept(self.key)
        return self._known

    def _start(self) -> None:
        start = time.perf_counter()
        try:
            for layer in self.layers:
                layer.compile(dynamic=True)
            _timed(self.compiled, self._trial)
        except Exception as error:  # of the compiler, or of a tool that it calls
            self.give_up(error)
            return
        first = time.perf_counter() - start
        before, after = self._compare()
        measured = Costs(first, 1 - after / before)
        log.info("layers compiled in %.1f s, which saves %.0f %%", first, 100 * measured.share)
        measured.keep(self.key)
        self._known = measured
        if measured.share <= 0 and self.mode == "auto":
            self._failed = True
            self._drop()
        else:
            self.active = True

    def _compare(self) -> tuple[float, float]:
        """Return the seconds of a trial without and with compiled layers."""
        pair, size = (self.backbone, self.compiled), self._trial
        pairs = [[_timed(backbone, size) for backbone in pair] for _ in range(PAIRS)]
        before, after = map(min, zip(*pairs, strict=True))
        return before, after

    def _drop(self) -> None:
        self.active = False
        for layer in self.layers:
            layer._compiled_call_impl = None

    def stop(self) -> None:
        """Go back to plain layers with plain weights."""
        with self._lock:
            self._drop()
            prepacked.unpack(self.layers)
            self.packed = False

    def give_up(self, error: Exception) -> None:
        """Go on uncompiled after a failure of what is compiled."""
        log.warning("layers run uncompiled, because compiling failed: %s", str(error)[:200])
        with self._lock:
            self._failed = True
            self._drop()


def _key(backbone: Backbone) -> str:
    first, config = type(backbone.layers[0]).__name__, backbone.text_config
    size = f"{len(backbone.layers)} x {getattr(config, 'hidden_size', '?')}"
    on_cpu = backbone.device.type == "cpu"
    machine = prepacked.processor() if on_cpu else str(backbone.device)
    kind = backbone.quantised or str(backbone.dtype)
    threads, version = torch.get_num_threads(), torch.__version__
    return f"{first} {size} {kind}, {machine}, {threads} threads, torch {version}"


@torch.inference_mode()
def _timed(backbone: Backbone, tokens: int) -> float:
    """Return the seconds of a trial: a pack of made-up rows."""
    start = time.perf_counter()
    backbone.run([[0] * TRIAL_ROW] * (tokens // TRIAL_ROW)).sum().item()
    return time.perf_counter() - start
