"""The tensors that a pass takes: rows of token ids, packed or padded, with their positions.

Shapes: T tokens of a pack, B sequences, L longest of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone.company import Rows
from embedlm.backbone.memory import put

__all__ = ["looked_up", "packed_inputs", "padded_inputs", "taken"]


def packed_inputs(
    rows: Rows, positions: Rows, prefix: int, held: int, first: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the ids and positions of rows that stand in one row, ids_1T and positions_1T.

    Args:
        rows: token ids, which all begin with the same `prefix` ids.
        positions: of the tokens, counted from 0.
        prefix: tokens shared by all rows.
        held: how many of them are left out, for their keys and values are kept.
        first: the position id of a row's first token.
        device: of the network.
    """
    both_2T = np.stack([_flat(values, prefix, held) for values in (rows, positions)])
    both_2T[1] += first
    ids_1T, positions_1T = put(torch.from_numpy(both_2T), device)[:, None]
    return ids_1T, positions_1T


def looked_up(network: Any, rows: Rows, prefix: int, device: torch.device) -> Tensor:
    """Return the embeddings of a shared prefix's tokens and then of each row's own, h_TD."""
    ids_T = put(torch.from_numpy(_flat(rows, prefix, 0)), device)
    states_TD: Tensor = network.get_input_embeddings()(ids_T)
    return states_TD


def _flat(rows: Rows, prefix: int, held: int) -> npt.NDArray[np.int64]:
    """Return what of a shared prefix is not held, and then each row's own numbers."""
    own = (row[prefix:] for row in rows) if prefix else rows
    # A tenth of the time of a list of lists, for which an accelerator would wait.
    return np.fromiter(chain(rows[0][held:prefix], chain.from_iterable(own)), np.int64)


def padded_inputs(
    rows: Rows,
    positions: Rows,
    unseen: Sequence[int],
    pad: int,
    first: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows padded on the right: ids_BL, positions_BL, seen_BL and mask_BL.

    `seen` is 0 for tokens that no token looks at, `mask` for the padding alone.
    """
    longest = max(map(len, rows))
    ids_BL = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    seen_BL = mask_BL.clone()
    for row_L, row, hidden in zip(seen_BL, rows, unseen, strict=False):
        row_L[len(row) - hidden :] = 0
    filled = [[*row, *range(len(row), longest)] for row in positions]
    positions_BL = torch.tensor(filled, device=device) + first
    ids_BL, seen_BL, mask_BL = (x.to(device) for x in (ids_BL, seen_BL, mask_BL))
    return ids_BL, positions_BL, seen_BL, mask_BL


def taken(
    accepts: Collection[str],
    config: Any,
    ids: Tensor,
    positions: Tensor | None,
    mask: Tensor | None,
) -> dict[str, Any]:
    """Return the arguments of a network's forward pass.

    Args:
        accepts: the names of its parameters.
        config: of its text part.
        ids: of the tokens.
        positions: of the tokens; None where the network counts by itself.
        mask: of attention; None: all tokens.
    """
    more: dict[str, Any] = {"use_cache": False}
    if positions is not None:
        more["position_ids"] = positions
    if hasattr(config, "type_vocab_size"):
        more["token_type_ids"] = torch.zeros_like(ids)
    given = {name: value for name, value in more.items() if name in accepts}
    return {"input_ids": ids, "attention_mask": mask, **given}
