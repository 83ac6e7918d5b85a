"""Texts as points in a plane, from their scores with each other.

Shapes: N texts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["plane"]


def plane(score_NN: Any) -> tuple[npt.NDArray[np.float64], float]:
    """Return points (N, 2), and the share of the texts' differences that they show.

    Kernel PCA (Schoelkopf et al., Neural Computation 1998) with the scores as the kernel: of dense
    unit vectors that is their PCA. A score that is not the same in both directions (MaxSim) is
    averaged. Each axis points so that its largest coordinate is positive.
    """
    s_NN = np.asarray(score_NN, dtype=np.float64)
    s_NN = (s_NN + s_NN.T) / 2
    s_NN = s_NN - s_NN.mean(axis=0) - s_NN.mean(axis=1)[:, None] + s_NN.mean()
    value_N, vector_NN = np.linalg.eigh(s_NN)
    place_N2 = np.zeros((len(s_NN), 2))
    for axis in range(min(2, len(s_NN))):
        v_N = vector_NN[:, -1 - axis]
        v_N = v_N * np.sign(v_N[np.abs(v_N).argmax()])
        place_N2[:, axis] = v_N * np.sqrt(max(value_N[-1 - axis], 0.0))
    total = float(np.abs(value_N).sum())
    shown = float(np.clip(value_N[::-1][:2], 0.0, None).sum())
    return place_N2, shown / total if total > 1e-9 else 1.0
