"""Contrastive batches of any size in the memory of a chunk.

GradCache (Gao et al., arXiv:2101.06983): embed all chunks without a graph, take the loss's gradient
in the embeddings, then embed each chunk once more with a graph and send its gradient through. The
random numbers of a chunk are the same both times, so that dropout is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RandomState", "backward_cached", "backward_plain"]

Chunk = Callable[[], Tensor]
"""Gives a chunk's embeddings, v_RD."""
LossOf = Callable[[Tensor], Tensor]
"""From all embeddings, v_ND, to a scalar."""


@dataclass(frozen=True, slots=True)
class RandomState:
    """The random number generators of the CPU and of every CUDA device."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        """Return the state as it is."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(torch.get_rng_state(), tuple(cuda))

    def restore(self) -> None:
        """Go back to this state."""
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
    """Do what `backward_plain` does with one chunk's graph at a time.

    Args:
        chunks: each gives its embeddings, the same each time it is called with the same random
            numbers.
        loss_of: the loss of all embeddings, in the order of the chunks.
        scale: of the gradient (accumulation).
        idle: chunks that are run like the others and count for nothing.
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
        if again.requires_grad:  # what is not trained is embedded too
            again.backward(gradient)
    for chunk in idle:
        (chunk().sum() * 0).backward()
    end.restore()
    return loss.detach()


def _moved(state: RandomState) -> bool:
    """Tell whether random numbers were drawn since."""
    return not torch.equal(state.cpu, torch.get_rng_state())
