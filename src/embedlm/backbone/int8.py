"""Linear layers in 8-bit integers: weights by output channel, activations by token as they come.

y = (q(x) q(W)^T) s_x s_W, q(a) = round(a / s), s = max|a| / 127: dynamic quantisation, as in
Dettmers et al., arXiv:2208.07339, without its outlier columns. Compiled, scaling is fused with
what stands before and after the product.

Shapes: T tokens, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Int8Linear", "in_int8"]

LEAST_ROWS = 17
"""CUDA's integer product takes no fewer."""


class Int8Linear(nn.Module):
    """A linear layer of int8 weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight_OI = layer.weight.detach().float()
        scale_O1 = weight_OI.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        self.weight = nn.Parameter((weight_OI / scale_O1).round().to(torch.int8), False)
        self.scale = nn.Parameter(scale_O1[:, 0], False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b in the dtype of x."""
        x_TI = x.flatten(0, -2)
        wide_TI = x_TI.float()
        scale_T1 = wide_TI.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        q_TI = (wide_TI / scale_T1).round().to(torch.int8)
        y_TO = _product(q_TI, self.weight).float() * scale_T1 * self.scale
        if self.bias is not None:
            y_TO = y_TO + self.bias
        return y_TO.to(x.dtype).view(*x.shape[:-1], self.out_features)


def _product(a_TI: Tensor, b_OI: Tensor) -> Tensor:
    """Return a b^T in int32."""
    if a_TI.device.type == "cuda" and len(a_TI) < LEAST_ROWS:
        padded = nn.functional.pad(a_TI, (0, 0, 0, LEAST_ROWS - len(a_TI)))
        return torch._int_mm(padded, b_OI.mT)[: len(a_TI)]
    return torch._int_mm(a_TI, b_OI.mT)


def in_int8(modules: Iterable[nn.Module]) -> int:
    """Replace the linear layers inside modules in place; return how many there were."""
    count = 0
    for module in modules:
        for parent in list(module.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, name, Int8Linear(layer))
                    count += 1
    return count
