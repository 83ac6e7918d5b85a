"""Which position ids a network gives its tokens by itself, measured on its own forward.

Classes count in different ways: from 0, from the padding id + 1 (RoBERTa, MPNet), from a table
that is offset inside the module (OPT). A packed row must be told its positions, so the way is
found by running the network without position ids and comparing.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["measured_first_position"]

_EXACT = {torch.float32: 1e-4, torch.float64: 1e-6}
_COARSE = 2e-2
"""The largest relative difference of equal states in half precision."""


def measured_first_position(network: nn.Module, row: list[int]) -> int | None:
    """Return the id of the first token's position; None where the network must count itself.

    Args:
        network: the body, on padded attention.
        row: token ids without the padding id.
    """
    accepts = inspect.signature(network.forward).parameters
    if "position_ids" not in accepts:
        return None
    device = next(network.parameters()).device
    ids_1L = torch.tensor([row], device=device)
    inputs: dict[str, Any] = {"input_ids": ids_1L, "attention_mask": torch.ones_like(ids_1L)}
    if "use_cache" in accepts:
        inputs["use_cache"] = False
    reference_1LD = _states(network, inputs)
    errors: dict[int, float] = {}
    for first in _candidates(network):
        positions_1L = torch.arange(len(row), device=device)[None] + first
        states_1LD = _states(network, {**inputs, "position_ids": positions_1L})
        errors[first] = _difference(states_1LD, reference_1LD)
    best = min(errors, key=lambda first: (errors[first], first))
    return best if errors[best] < _EXACT.get(reference_1LD.dtype, _COARSE) else None


def _candidates(network: nn.Module) -> list[int]:
    """Return the first positions that a class could count from: 0, and after each padding id."""
    after_padding = {
        int(module.padding_idx) + 1
        for module in network.modules()
        if isinstance(getattr(module, "padding_idx", None), int)
    }
    return sorted({0, *after_padding})


def _states(network: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return network(**inputs).last_hidden_state  # type: ignore[no-any-return]


def _difference(states: Tensor, reference: Tensor) -> float:
    size = reference.float().norm().clamp_min(1e-9)
    return float((states.float() - reference.float()).norm() / size)
