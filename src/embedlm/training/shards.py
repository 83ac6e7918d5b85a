"""This process's parts of tensors that are sharded over several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["load_local_state", "local", "local_state", "put_weights"]


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, or all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def put_weights(weights: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Copy weights, or this process's parts of them, by name."""
    with torch.no_grad():
        for name, tensor in weights.items():
            local(tensor).copy_(found[name])


def local_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state with this process's parts of its tensors."""
    state = optimizer.state_dict()
    parts = {
        index: {key: local(v) if isinstance(v, Tensor) else v for key, v in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": parts}


def load_local_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back what `local_state` gave, for parameters that are sharded likewise."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    whole = {}
    for index, values in state["state"].items():
        parameter = parameters[index]
        whole[index] = {key: _like(v, parameter) for key, v in values.items()}
    optimizer.load_state_dict({**state, "state": whole})


def _like(value: Any, parameter: Tensor) -> Any:
    """Return a part as the sharded tensor it is of; numbers stay as they are."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or not value.ndim:
        return value
    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
