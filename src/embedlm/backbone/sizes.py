"""Whether a network is as large as its files: told before damaged sizes take memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from embedlm.backbone.tensors import read_index
from embedlm.errors import ModelError

__all__ = ["check_sizes"]

_TIMES = 2
"""How many times as many numbers as its files a network may have: a head that they lack, say."""
_FEW = 1 << 20
"""Numbers that any network may have."""
Shapes = dict[str, tuple[int, ...]]


def check_sizes(source: str, loader: Any, config: Any) -> None:
    """Refuse a config that asks for many times what a folder's files hold.

    transformers would fill what does not fit with random numbers, however many they are.

    Args:
        source: folder or hub id; only a folder is looked at.
        loader: class of transformers that makes the network.
        config: of the network.

    Raises:
        ModelError: names a tensor of another shape.
    """
    held, shapes = _held(Path(source))
    network: nn.Module | None = None
    with suppress(Exception), torch.device("meta"):  # loading says what is wrong
        network = loader.from_config(deepcopy(config))
    if not held or network is None:
        return
    weights = network.state_dict(keep_vars=True)
    asked = sum(weight.numel() for weight in {id(one): one for one in weights.values()}.values())
    if asked <= _TIMES * held + _FEW:
        return
    raise ModelError(
        f"the weights in {source!r} do not fit its config, which asks for {asked:,} numbers where "
        f"they are {held:,}{_unlike(network, weights, shapes)}. Take the config.json that they "
        "were saved with"
    )


def _held(folder: Path) -> tuple[int, Shapes]:
    """Return how many numbers a folder's files may hold, and the shapes of those that say theirs.

    Whole numbers may hold several weights each, which are then a bit at least. Where a file is
    missing or damaged there are none: loading says what is wrong.
    """
    held, shapes = 0, {}
    parts = (part for one in folder.glob("*.index.json") for part in read_index(one).values())
    if not all((folder / part).is_file() for part in set(parts)):
        return 0, {}
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(str(file), "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    stored = tensors.get_slice(name)
                    shapes[name] = tuple(stored.get_shape())
                    packed = 8 if stored.get_dtype().startswith(("I", "U")) else 1
                    held += packed * prod(shapes[name])
        except (OSError, SafetensorError):
            return 0, {}
    return held + sum(file.stat().st_size for file in folder.glob("*.bin")), shapes


def _unlike(network: nn.Module, weights: Mapping[str, Tensor], shapes: Shapes) -> str:
    """Return in words the largest of the tensors that the files have in another shape."""
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    found = [
        (weight.numel(), name, shapes[key], tuple(weight.shape))
        for name, weight in weights.items()
        for key in (name, name.removeprefix(prefix), f"{prefix}{name}")
        if key in shapes and shapes[key] != tuple(weight.shape)
    ]
    if not found:
        return ""
    _, name, stored, asked = max(found)
    return f"; {name}, for example, is {list(stored)} there, and {list(asked)} by the config"
