"""FSDP2: weights, gradients and optimiser states sharded over the processes (ZeRO stage 3).

A layer's weights are gathered when it runs and freed afterwards, so that several devices train a
model that is too large for one.
Rajbhandari et al., arXiv:1910.02054; torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from embedlm.errors import UnsupportedError
from embedlm.schema.tuning import Stage
from embedlm.training.bottleneck import BOTTLENECK
from embedlm.training.devices import process_count
from embedlm.training.trainable import TrainableEmbedder

__all__ = [
    "check_sharding",
    "clip_gradients",
    "load_local_state",
    "local_part",
    "local_state",
    "put_weights",
    "shard",
    "whole_weights",
]


def check_sharding(stage: Stage) -> None:
    """Refuse a stage that cannot be trained in shards.

    Raises:
        UnsupportedError: the base is in 4 bits, or an objective reads single token embeddings.
    """
    where = f"stage {stage.name!r}"
    if stage.adapter is not None and stage.adapter.kind == "qlora":
        raise UnsupportedError(f"{where}: a base in 4 bits cannot be sharded; take lora")
    if any(loss.kind in BOTTLENECK for loss in stage.objective):
        raise UnsupportedError(
            f"{where}: {' and '.join(BOTTLENECK)} read single rows of the embedding "
            "table, which sharding splits; set sharding: none"
        )


def shard(model: TrainableEmbedder) -> None:
    """Shard the network's weights over the processes; the language-model head stays whole.

    Raises:
        UnsupportedError: the network has no layers.
    """
    backbone = model.backbone
    if backbone.static:
        raise UnsupportedError("a static model has no layers to shard; set sharding: none")
    mesh = init_device_mesh(backbone.device.type, (process_count(),))
    head: Any = backbone.head
    kept = set(head.parameters()) if head is not None else set()
    for part in (*backbone.layers, backbone.network):
        fully_shard(part, mesh=mesh, ignored_params=kept)
    model.rebuild(sharded=True)


def whole_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gathered weights on the CPU; all processes must call this."""
    return {
        name: (w.full_tensor() if isinstance(w, DTensor) else w).detach().cpu()
        for name, w in weights.items()
    }


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Scale gradients so that their total norm is at most `limit`; return the norm before."""
    every: Sequence[nn.Parameter] = [p for p in parameters if p.grad is not None]
    if not any(isinstance(p, DTensor) for p in every):
        return float(nn.utils.clip_grad_norm_(every, limit or math.inf))
    squares = [torch.zeros((), device=local_part(every[0]).device) for _ in range(2)]
    for parameter in every:
        gradient: Any = parameter.grad
        squares[isinstance(gradient, DTensor)] += local_part(gradient).float().square().sum()
    dist.all_reduce(squares[1])
    norm = float(sum(squares).sqrt())  # type: ignore[union-attr]
    if limit is not None and norm > limit:
        for parameter in every:
            gradient = parameter.grad
            local_part(gradient).mul_(limit / (norm + 1e-6))
    return norm


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def put_weights(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into weights, or into this process's shards of them, by name."""
    with torch.no_grad():
        for name, tensor in weights.items():
            local_part(tensor).copy_(values[name])


def local_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state with this process's shards of its tensors."""
    state = optimizer.state_dict()
    parts = {
        index: {key: local_part(v) if isinstance(v, Tensor) else v for key, v in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": parts}


def load_local_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore what `local_state` returned, for parameters that are sharded the same way."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    whole = {}
    for index, values in state["state"].items():
        parameter = parameters[index]
        whole[index] = {key: _like(v, parameter) for key, v in values.items()}
    optimizer.load_state_dict({**state, "state": whole})


def _like(value: Any, parameter: Tensor) -> Any:
    """Return a shard as a part of its sharded tensor; numbers stay as they are."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or not value.ndim:
        return value
    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
