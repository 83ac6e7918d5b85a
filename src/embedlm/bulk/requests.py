"""What a job sends to its workers, and what they return; each kind of worker stands on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedlm.bulk.blocks import Block, BlockEncoder
from embedlm.data import Record

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.encode.compiling import Mode

__all__ = ["BlockRequest", "WorkerResult", "WorkerSettings"]

WorkerResult = Block | Exception | None
"""What a worker returns: a block, an error, or None because its process has ended."""


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """The records of a block that a worker is to encode."""

    index: int
    records: Sequence[Record]
    digest: npt.NDArray[np.uint8]
    """A hash of the records, which is stored in the block."""
    file: str
    """The input's name, for messages."""
    ranges: npt.NDArray[np.float32] | None = None
    kernels: Mode = "off"

    def run(self, encoder: BlockEncoder) -> Block:
        """Return the block of these records."""
        return {**encoder(self.records, self.file), "digest": self.digest}


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker needs to encode any block of a job; it can be sent to another process."""

    load: Callable[[], Embedder]
    options: dict[str, Any] = field(default_factory=dict)
    """The options of `Embedder.encode`."""
    keep_rejects: bool = False
    threads: int | None = None
    device: str | None = None
    """The one accelerator that the worker's process sees; None: all of them."""

    def start(self) -> Callable[[BlockRequest], Block]:
        """Load the model; return the function that encodes a block."""
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = self.load()
        encoder = BlockEncoder(model, self.options, keep_rejects=self.keep_rejects)

        def encode(request: BlockRequest) -> Block:
            encoder.ranges = request.ranges
            with model.executor.fixed(request.kernels):
                return request.run(encoder)

        return encode
