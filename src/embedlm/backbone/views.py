"""Views of a network: copies of its structure that share every parameter.

What decides how a network runs (its attention implementation, the direction of its attention, the
adapter that is active) lies in attributes of its modules and configs. Changing them on the one
network would change the passes that other threads are running. A view has such attributes of its
own, and costs the memory of some Python objects: its weights are the network's.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig

from embedlm.backbone import attention, prompts

__all__ = ["View", "ViewCache", "copy_structure"]

_OWN = ("config", "is_causal")
"""Attributes for which a module without children is copied all the same."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class View(NamedTuple):
    """Which view of a network a pass runs through."""

    implementation: str
    """packed, sdpa or eager."""
    causal: bool
    adapter: str | None = None
    """Of the switchable adapters; None: the base alone."""
    tapped: bool = False
    """Whether the states between its layers can be read."""
    writes: bool = False
    """Whether it is the whole language model, its head included."""

    def attention(self, device: torch.device) -> str:
        """Return transformers' name of the attention that it runs with on a device."""
        if self.implementation == "packed":
            return attention.NAME
        reads_prompts = self.writes and self.implementation == "sdpa" and device.type == "cpu"
        return prompts.NAME if reads_prompts else self.implementation


def copy_structure(network: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a network of the same parameters with containers, configs and hooks of its own.

    Modules without children (linear layers, norms, embeddings) are shared, so that what is done to
    their weights holds for all copies. Compiled forms stay with the original.

    Args:
        network: is left as it is.
        memo: what stands for an object in the copy, by the object's id; filled on the way.
    """
    memo = {} if memo is None else memo
    if id(network) in memo:
        known: nn.Module = memo[id(network)]
        return known
    if not network._modules and not any(name in network.__dict__ for name in _OWN):
        return network
    # Not by the class: FSDP's makes an unsharded module of it.
    new: nn.Module = object.__new__(type(network))
    memo[id(network)] = new
    for name, value in network.__dict__.items():
        new.__dict__[name] = _attribute(name, value, memo)
    new.__dict__["_modules"] = {
        name: None if child is None else copy_structure(child, memo)
        for name, child in network._modules.items()
    }
    new.__dict__["_compiled_call_impl"] = None
    return new


def _attribute(name: str, value: Any, memo: dict[int, Any]) -> Any:
    """Return what stands for a module's attribute in its copy."""
    if name == "_parameters":
        return value  # the very dict: FSDP puts joined weights into it
    if name == "_buffers" or name in _HOOKS:
        return copy.copy(value)
    if isinstance(value, PretrainedConfig):
        return copy.deepcopy(value, memo)
    if isinstance(value, nn.Module):
        return copy_structure(value, memo)
    if isinstance(value, MethodType) and id(value.__self__) in memo:
        return MethodType(value.__func__, memo[id(value.__self__)])
    return value


class ViewCache:
    """The views of one network that were asked for so far."""

    def __init__(self) -> None:
        self._views: dict[View, nn.Module] = {}
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy nothing: views are made anew over the copy's network."""
        return ViewCache, ()

    def get(self, view: View, make: Callable[[], nn.Module], training: bool) -> nn.Module:
        """Return a view, made at its first use, in the network's mode (training or not)."""
        network = self._views.get(view)
        if network is None or network.training is not training:
            with self._lock:
                network = self._views.get(view)
                if network is None:
                    network = self._views[view] = make()
                if network.training is not training:
                    network.train(training)
        return network
