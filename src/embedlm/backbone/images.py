"""What a pass takes of images: their patches, and where their tokens stand.

Shapes: B sequences, L longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Pixels", "image_inputs"]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """An image as a network's vision part reads it."""

    tensors: dict[str, Tensor]
    """Arguments of the network's forward pass; those of several images are joined."""
    tokens: int
    """How many tokens of its row stand for it."""
    on_grid: bool = True
    """Whether these are placed by row and column, and not one after another."""


def image_inputs(
    network: nn.Module, images: Sequence[Pixels], ids_BL: Tensor, mask_BL: Tensor
) -> dict[str, Any]:
    """Return the further arguments of a pass whose rows hold an image each.

    Args:
        network: has a vision part.
        images: one a row.
        ids_BL: token ids, those of the images among them.
        mask_BL: 0 for padding.
    """
    model: Any = network
    inputs: dict[str, Any] = {}
    for name, tensor in images[0].tensors.items():
        dtype = model.dtype if tensor.is_floating_point() else tensor.dtype
        inputs[name] = torch.cat([one.tensors[name] for one in images]).to(ids_BL.device, dtype)
    if not images[0].on_grid:
        return inputs
    # Computed here, for the network would keep them for its next pass (and other threads').
    inputs["position_ids"], _ = model.get_rope_index(
        ids_BL,
        mm_token_type_ids=(ids_BL == model.config.image_token_id).int(),
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=mask_BL,
    )
    return inputs
