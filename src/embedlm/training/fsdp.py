"""Weights, gradients and optimiser states split over the processes (FSDP2, ZeRO stage 3).

A layer's weights are joined when it runs and given up afterwards: a model too large for one device
is trained on several. Rajbhandari et al., arXiv:1910.02054; torch.distributed.fsdp.fully_shard.
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
from embedlm.training.devices import world
from embedlm.training.shards import local
from embedlm.training.trainable import Student

__all__ = ["check_sharding", "clip_gradients", "shard", "whole_weights"]


def check_sharding(stage: Stage) -> None:
    """Refuse a stage that cannot be trained in shards.

    Raises:
        UnsupportedError: with what to change.
    """
    where = f"stage {stage.name!r}"
    if stage.adapter is not None and stage.adapter.kind == "qlora":
        raise UnsupportedError(f"{where}: a base in 4 bits is not sharded; take lora")
    if any(loss.kind in BOTTLENECK for loss in stage.objective):
        raise UnsupportedError(
            f"{where}: {' and '.join(BOTTLENECK)} read the embeddings of tokens by themselves, "
            "which sharding takes apart; set sharding: none"
        )


def shard(student: Student) -> None:
    """Split the network's weights over the processes; its head and what is small stay whole.

    Raises:
        UnsupportedError: a network without layers.
    """
    backbone = student.backbone
    if backbone.static:
        raise UnsupportedError("a static model has no layers to shard; set sharding: none")
    mesh = init_device_mesh(backbone.device.type, (world(),))
    head: Any = backbone.head
    kept = set(head.parameters()) if head is not None else set()
    for part in (*backbone.layers, backbone.network):
        fully_shard(part, mesh=mesh, ignored_params=kept)
    student.rebuild(sharded=True)


def whole_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return joined weights on the CPU; all processes must ask."""
    return {
        name: (w.full_tensor() if isinstance(w, DTensor) else w).detach().cpu()
        for name, w in weights.items()
    }


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> float:
    """Scale gradients so that their joint norm is at most `limit`; return the norm before."""
    every: Sequence[nn.Parameter] = [p for p in parameters if p.grad is not None]
    if not any(isinstance(p, DTensor) for p in every):
        return float(nn.utils.clip_grad_norm_(every, limit or math.inf))
    squares = [torch.zeros((), device=local(every[0]).device) for _ in range(2)]
    for parameter in every:
        gradient: Any = parameter.grad
        squares[isinstance(gradient, DTensor)] += local(gradient).float().square().sum()
    dist.all_reduce(squares[1])
    norm = float(sum(squares).sqrt())  # type: ignore[union-attr]
    if limit is not None and norm > limit:
        for parameter in every:
            gradient = parameter.grad
            local(gradient).mul_(limit / (norm + 1e-6))
    return norm
