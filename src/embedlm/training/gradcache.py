"""GradCache: contrastive batches of any size in the memory of one chunk.

Gao et al., arXiv:2101.06983: embed all chunks without a graph, compute the loss's gradient with
respect to the embeddings, then embed each chunk again with a graph and backpropagate its part. The
random state of a chunk is the same both times, and so is its dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RandomState", "backward_cached", "backward_plain"]

Chunk = Callable[[], Tensor]
"""Function that returns the embeddings of a chunk, v_RD."""
LossOf = Callable[[Tensor], Tensor]
"""Function from all embeddings, v_ND, to a scalar."""


@dataclass(frozen=True, slots=True)
class RandomState:
    """The random number generators of the CPU and of every CUDA device."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        """Return the current state."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(torch.get_rng_state(), tuple(cuda))

    def restore(self) -> None:
        """Restore this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))


def backward_plain(chunks: Sequence[Chunk], loss_of: LossOf, scale: float = 1.0) -> Tensor:
    """Add the loss's gradient to the parameters with all chunks in one graph; return the loss."""
    loss = loss_of(torch.cat([chunk() for chunk in chunks]))
    (loss * scale).backward()
    return loss.detach()


def backward_cached(
    chunks: Sequence[Chunk], loss_of: LossOf, scale: float = 1.0, idle: Sequence[Chunk] = ()
) -> Tensor:
    """Do what `backward_plain` does with the graph of one chunk at a time.

    Args:
        chunks: functions that return embeddings, the same ones whenever the random state is equal.
        loss_of: computes the loss of all embeddings, in the order of the chunks.
        scale: factor of the gradient, for accumulation.
        idle: chunks that run like the others and add nothing to the gradient.
    """
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(RandomState.now())
            parts.append(chunk())
        for chunk in idle:
            chunk()
    after = RandomState.now()
    v_ND = torch.cat(parts).requires_grad_()
    loss = loss_of(v_ND)
    (gradient_ND,) = torch.autograd.grad(loss * scale, v_ND)
    end = RandomState.now() if _moved(after) else after
    for chunk, state, gradient in zip(
        chunks, states, gradient_ND.split([len(part) for part in parts]), strict=True
    ):
        state.restore()
        again = chunk()
        if again.requires_grad:  # texts of an untrained adapter are embedded too
            again.backward(gradient)
    for chunk in idle:
        (chunk().sum() * 0).backward()
    end.restore()
    return loss.detach()


def _moved(state: RandomState) -> bool:
    """Tell whether random numbers have been drawn since this state."""
    return not torch.equal(state.cpu, torch.get_rng_state())
