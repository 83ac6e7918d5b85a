"""Compiling layers once a job is long enough to repay it.

Compilation fuses the element-wise work between the matrix products. It costs some seconds once, so
it is put off until as much time has been spent without it as it is likely to cost: whatever length
the job turns out to have, at most twice the best possible time is spent. A job that must give the
same bits when it is run in parts decides at its start instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from embedlm.backbone import prepacked

__all__ = ["Compiling"]

log = logging.getLogger(__name__)

REPAID_AFTER = 20.0
"""Seconds of uncompiled work after which layers are compiled."""

LEAST = 512
"""Tokens from which a pack runs compiled: kernels are tuned to the sizes seen first and kept on
disk, and those tuned to a few tokens are several times slower on many."""

Mode = Literal["auto", "on", "off"]


class Compiling:
    """Whether a model's layers run compiled."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self.layers = layers
        self.mode: Mode = "auto"
        self.active = False
        self._failed = False
        self._spent = 0.0

    def suits(self, tokens: int) -> bool:
        """Tell whether a pack of this size may run compiled."""
        return tokens >= LEAST

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one forward pass, compiling before it if that is due."""
        if not self.active and not self._failed and not torch.is_grad_enabled():
            due = self.mode == "on" or (self.mode == "auto" and self._spent > REPAID_AFTER)
            if due:
                self._start()
        elif self.active and self.mode == "off":
            self.stop()
        start = time.perf_counter()
        yield
        self._spent += time.perf_counter() - start

    def _start(self) -> None:
        prepacked.pack(self.layers)
        for layer in self.layers:
            layer.compile(dynamic=True)
        self.active = True

    def stop(self) -> None:
        """Go back to plain layers."""
        prepacked.unpack(self.layers)
        for layer in self.layers:
            layer._compiled_call_impl = None
        self.active = False

    def give_up(self, error: Exception) -> bool:
        """Go on uncompiled after a failure; tell whether that can help."""
        if not self.active:
            return False
        log.warning("layers run uncompiled, because compiling failed: %s", str(error)[:200])
        self._failed = True
        self.stop()
        return True
