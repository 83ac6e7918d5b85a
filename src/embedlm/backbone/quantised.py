"""Linear layers in 8 bits: weights by output channel, activations by token as they come.

y = (q(x) q(W)^T) s_x s_W, q(a) = round(a / s), s = max|a| / m: dynamic quantisation, as in
Dettmers et al., arXiv:2208.07339, without its outlier columns. m is 127 for int8 and 448, the
largest number of float8_e4m3fn, for fp8. Compiled, scaling is fused with what stands before and
after the product.

Shapes: T tokens, I inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from embedlm.backbone import prepacked

__all__ = ["KINDS", "Fp8Linear", "Int8Linear", "Kind", "quantise"]

Kind = Literal["int8", "fp8"]
LEAST_ROWS = 17
"""CUDA's integer product takes no fewer."""
FP8 = torch.float8_e4m3fn


def _scale(x_NI: Tensor, most: float) -> Tensor:
    """Return what each row is divided by to lie within plus and minus `most`, scale_N1."""
    return x_NI.abs().amax(1, keepdim=True).clamp_min(1e-12) / most


class _Quantised(nn.Module):
    """A linear layer of 8-bit weights."""

    def __init__(self, layer: nn.Linear, most: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight_OI = layer.weight.detach().float()
        scale_O1 = _scale(weight_OI, most)
        weight_OI = weight_OI / scale_O1
        weight_OI = weight_OI if dtype.is_floating_point else weight_OI.round()
        self.weight = nn.Parameter(weight_OI.to(dtype), False)
        self.scale = nn.Parameter(scale_O1[:, 0], False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b in the dtype of x."""
        y_TO = self._product(x.flatten(0, -2))
        if self.bias is not None:
            y_TO = y_TO + self.bias
        return y_TO.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _product(self, x_TI: Tensor) -> Tensor:
        raise NotImplementedError


class Int8Linear(_Quantised):
    """A linear layer of int8 weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer, 127, torch.int8)
        self.blocked = self.weight.device.type == "cpu" and _exact_in_blocks()
        """The weight lies as the CPU's products want it: twice as fast as in plain rows."""
        if self.blocked:
            self.weight.data = prepacked.pack_int8(self, self.weight.detach())

    def _product(self, x_TI: Tensor) -> Tensor:
        wide_TI = x_TI.float()
        scale_T1 = _scale(wide_TI, 127)
        q_TI = (wide_TI / scale_T1).round_()
        if self.blocked:
            q_TI = q_TI.add_(prepacked.MIDDLE).to(torch.uint8)
            y_TO: Tensor = torch.ops.embedlm.int8_product(q_TI, self.weight, self.scale)
            return y_TO.mul_(scale_T1)
        return _int_mm(q_TI.to(torch.int8), self.weight).float() * scale_T1 * self.scale


class Fp8Linear(_Quantised):
    """A linear layer of float8_e4m3fn weights; fast where the card has such products."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer, torch.finfo(FP8).max, FP8)

    def _product(self, x_TI: Tensor) -> Tensor:
        wide_TI = x_TI.float()
        scale_T1 = _scale(wide_TI, torch.finfo(FP8).max)
        q_TI = (wide_TI / scale_T1).to(FP8)
        out = torch.bfloat16 if x_TI.dtype == torch.bfloat16 else torch.float32
        scale_1O = self.scale[None]
        if x_TI.device.type == "cuda":  # scales by row come with bfloat16 only there
            out = torch.bfloat16
        return torch._scaled_mm(q_TI, self.weight.mT, scale_T1, scale_1O, out_dtype=out)


KINDS: dict[Kind, Callable[[nn.Linear], _Quantised]] = {"int8": Int8Linear, "fp8": Fp8Linear}


def _int_mm(a_TI: Tensor, b_OI: Tensor) -> Tensor:
    """Return a b^T in int32."""
    if a_TI.device.type == "cuda" and len(a_TI) < LEAST_ROWS:
        padded = nn.functional.pad(a_TI, (0, 0, 0, LEAST_ROWS - len(a_TI)))
        return torch._int_mm(padded, b_OI.mT)[: len(a_TI)]
    return torch._int_mm(a_TI, b_OI.mT)


@lru_cache(maxsize=1)
def _exact_in_blocks() -> bool:
    """Tell whether products over blocked weights are there and equal plain ones to the last bit.

    Without VNNI sums of two products saturate at 16 bits: the largest numbers are tried.
    """
    weight_OI = torch.randint(-127, 128, (64, 96), dtype=torch.int8)
    weight_OI[:32] = 127
    q_TI = torch.randint(-127, 128, (24, 96), dtype=torch.int8)
    q_TI[:12] = 127
    holder = nn.Module()
    try:
        stand_in = prepacked.pack_int8(holder, weight_OI)
        shifted_TI = (q_TI.int() + prepacked.MIDDLE).to(torch.uint8)
        found_TO = torch.ops.embedlm.int8_product(shifted_TI, stand_in, torch.ones(64))
    except (RuntimeError, AttributeError):
        return False
    return torch.equal(found_TO, torch._int_mm(q_TI, weight_OI.mT).float())


def quantise(modules: Iterable[nn.Module], kind: Kind) -> int:
    """Replace the linear layers inside modules in place; return how many there were."""
    count = 0
    for module in modules:
        for parent in list(module.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, name, KINDS[kind](layer))
                    count += 1
    return count
