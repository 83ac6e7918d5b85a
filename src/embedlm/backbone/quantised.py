"""Linear layers in 8 bits: weights by output channel, activations by token as they come.

y = (q(x) q(W)^T) s_x s_W, q(a) = round(a / s), s = max|a| / m: dynamic quantisation, as in
Dettmers et al., arXiv:2208.07339, without its outlier columns. m is 127 for int8 and 448, the
largest number of float8_e4m3fn, for fp8. Compiled, scaling is fused with what stands before and
after the product.

Shapes: T tokens, I inputs, O outputs of a layer.
"""

from __future__ import annotations

import threading
import weakref
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
    return _largest(x_NI).float().clamp_min(1e-12) / most


def _largest(x_NI: Tensor) -> Tensor:
    """Return each row's largest magnitude, x_N1."""
    halves = x_NI.dtype in (torch.bfloat16, torch.float16) and x_NI.device.type == "cpu"
    if not halves or torch.compiler.is_compiling():
        return x_NI.abs().amax(1, keepdim=True)
    # Without its sign a number is ordered as its bits are, whose largest is found in half the time.
    largest_N1 = (x_NI.view(torch.int16) & 0x7FFF).amax(1, keepdim=True)
    return largest_N1.view(x_NI.dtype)


class _Taken(threading.local):
    """What this thread's last product took: queries, keys and values are made of one tensor."""

    last: tuple[weakref.ref[Tensor], tuple[Tensor, Tensor]] | None = None
    """The tensor, and what was made of it."""


_taken = _Taken()


class _Quantised(nn.Module):
    """A linear layer of 8-bit weights."""

    most: float
    """The largest number of its dtype."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight_OI = layer.weight.detach().float()
        scale_O1 = _scale(weight_OI, self.most)
        weight_OI = weight_OI / scale_O1
        weight_OI = weight_OI if dtype.is_floating_point else weight_OI.round()
        self.weight = nn.Parameter(weight_OI.to(dtype), False)
        self.scale = nn.Parameter(scale_O1[:, 0], False)
        self.bias = layer.bias
        self.shares = False
        """Whether what the product before it took is taken again, if it is the same tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b in the dtype of x."""
        y_TO = self._product(*self._scaled(x), x.dtype)
        if self.bias is not None:
            y_TO = y_TO + self.bias
        return y_TO.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _scaled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the activations in 8 bits, q_TI, and what they are to be multiplied by."""
        shares = self.shares and not torch.compiler.is_compiling()
        last = _taken.last if shares else None
        if last is not None and last[0]() is x:
            return last[1]
        x_TI = x.flatten(0, -2)
        scale_T1 = _scale(x_TI, self.most)
        apart = x.dtype != torch.float32
        wide_TI = x_TI.float().div_(scale_T1) if apart else x_TI / scale_T1
        scaled = self._in_bytes(wide_TI), scale_T1
        if shares:
            _taken.last = weakref.ref(x), scaled
        return scaled

    def _in_bytes(self, q_TI: Tensor) -> Tensor:
        raise NotImplementedError

    def _product(self, q_TI: Tensor, scale_T1: Tensor, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


class Int8Linear(_Quantised):
    """A linear layer of int8 weights."""

    most = 127

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer, torch.int8)
        self.blocked = self.weight.device.type == "cpu" and _exact_in_blocks()
        """The weight lies as the CPU's products want it: twice as fast as in plain rows."""
        if self.blocked:
            self.weight.data = prepacked.pack_int8(self, self.weight.detach())

    def _in_bytes(self, q_TI: Tensor) -> Tensor:
        q_TI = q_TI.round_().to(torch.int8)
        return prepacked.shifted(q_TI) if self.blocked else q_TI

    def _product(self, q_TI: Tensor, scale_T1: Tensor, dtype: torch.dtype) -> Tensor:
        if self.blocked:
            return prepacked.int8_product(q_TI, self.weight, self.scale).mul_(scale_T1)
        return _int_mm(q_TI, self.weight).float() * scale_T1 * self.scale


class Fp8Linear(_Quantised):
    """A linear layer of float8_e4m3fn weights; fast where the card has such products."""

    most = torch.finfo(FP8).max

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer, FP8)

    def _in_bytes(self, q_TI: Tensor) -> Tensor:
        return q_TI.to(FP8)

    def _product(self, q_TI: Tensor, scale_T1: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        scale_1O = self.scale[None]
        if q_TI.device.type == "cuda":  # scales by row come with bfloat16 only there
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
        shifted_TI = prepacked.shifted(q_TI.clone())
        found_TO = prepacked.int8_product(shifted_TI, stand_in, torch.ones(64))
    except (RuntimeError, AttributeError):
        return False
    return torch.equal(found_TO, torch._int_mm(q_TI, weight_OI.mT).float())


def quantise(modules: Iterable[nn.Module], kind: Kind) -> int:
    """Replace the linear layers inside modules in place; return how many there were."""
    count = 0
    for module in modules:
        for parent in list(module.modules()):
            for name, layer in list(parent.named_children()):
                if prepacked.is_linear(layer):
                    setattr(parent, name, KINDS[kind](layer))
                    count += 1
    return count


def share_inputs(modules: Iterable[nn.Module], *runs: Callable[[], Tensor]) -> None:
    """Have layers that follow each other on one tensor scale it once.

    A network that changed the tensor in between, or from pass to pass, would get other states: what
    passes over some rows give is compared, and must be the same to the last bit.

    Args:
        modules: hold the layers.
        runs: give states of the modules' network, each those of other rows of one length.
    """
    layers = [x for module in modules for x in module.modules() if isinstance(x, _Quantised)]
    apart = [run() for run in runs]
    for layer in layers:
        layer.shares = True
    if not all(torch.equal(run(), apart_TD) for run, apart_TD in zip(runs, apart, strict=True)):
        for layer in layers:
            layer.shares = False
