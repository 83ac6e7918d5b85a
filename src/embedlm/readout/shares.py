"""Which tokens an output is made of, before anything is run.

A pooling is linear in the states, so the gradient of what it gathers is the weight that it gives
each token. That of the largest state is shared by all that may be it.

Shapes: R tokens of the texts one after another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from embedlm.prompt.segments import Segments
from embedlm.readout.readout import Readout
from embedlm.readout.states import PackStates

__all__ = ["shares"]

Shares = list[npt.NDArray[np.floating]]


def shares(
    readout: Readout,
    rows: Sequence[Sequence[int]],
    segments: Sequence[Segments],
    role: str | None = None,
) -> dict[str, Shares]:
    """Return for each head and text how much each token counts; a text's shares add up to 1.

    Attention sinks that are told by their states (`exclude_sink: norm`) are counted here.

    Args:
        readout: whose heads are asked.
        rows: token ids of the texts.
        segments: of these tokens.
        role: of the texts.
    """
    found: dict[str, Shares] = {}
    starts = np.cumsum([len(row) for row in rows])[:-1]
    for head in readout.heads:
        with torch.inference_mode(False), torch.enable_grad():
            h_R1 = torch.ones(sum(map(len, rows)), 1, requires_grad=True)
            states = PackStates(h_R1, rows, segments, role=role)
            (share_R1,) = torch.autograd.grad(head.gathered(readout, states).sum(), h_R1)
        parts = np.split(share_R1[:, 0].numpy(), starts)
        found[head.kind] = [part / max(float(part.sum()), 1e-12) for part in parts]
    return found
