"""Linear layers whose weights lie in the blocked layout that the CPU's matrix products want.

oneDNN brings a plain weight into that layout on every call; done once, products of bfloat16 are
about 5 % faster, and those of float32 2.3 times as fast as MKL's on an AMD EPYC. The plain weight
is given up meanwhile, so that memory stays the same, and comes back from the packed one.

Shapes: I inputs, O outputs of a layer.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from mmap import PAGESIZE
from pathlib import Path
from typing import Any, TypeGuard
from weakref import finalize

import torch
from torch import Tensor, nn

__all__ = [
    "int8_product",
    "is_linear",
    "pack",
    "pack_int8",
    "plain",
    "prepare",
    "processor",
    "product",
    "shifted",
    "unpack",
]

_NAMES = ("vendor_id", "model name")
_DONT_NEED = 4
"""MADV_DONTNEED."""
TOKENS = 2048
"""The pack size that the layout is chosen for; others work too."""

_MANY = 1 << 18
"""Inner products from which another library's start is repaid."""

MIDDLE = 128
"""Stands for zero in the unsigned bytes that integer products take."""

_packed: dict[int, Tensor] = {}
"""Packed weights by the address of what stands in for the plain one."""


class _Prepacked(nn.Linear):
    """A linear layer whose weight may be packed, and unpacked again, while threads run it.

    Its state and its copies have the plain weight.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b."""
        if torch.compiler.is_compiling():
            out: Tensor = torch.ops.embedlm.prepacked_linear(input, self.weight, self.bias)
            return out
        return _product(input, self.weight, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: the plain weight."""
        state = dict(self.__dict__)
        if self.weight.data_ptr() in _packed:
            weight = nn.Parameter(plain(self.weight), requires_grad=False)
            state["_parameters"] = {**self._parameters, "weight": weight}
        return state

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.data_ptr() in _packed:
            destination[f"{prefix}weight"] = plain(self.weight)


@torch.library.custom_op("embedlm::prepacked_linear", mutates_args=())
def _linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return _product(x, weight_OI, bias_O)


def _product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    packed = _packed.get(weight_OI.data_ptr())
    if packed is None:  # the weight is a plain one
        return nn.functional.linear(x, weight_OI, bias_O)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias_O, "none", [], "")
    return out


@_linear.register_fake
def _(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight_OI.shape[0])


def int8_product(q_TI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """Return (q - 128) W^T s in float32, of a weight that was packed by `pack_int8`."""
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.embedlm.int8_product(q_TI, weight_OI, scale_O)
        return out
    return _product_of_bytes(q_TI, weight_OI, scale_O)


@torch.library.custom_op("embedlm::int8_product", mutates_args=())
def _int8_product(q_TI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    return _product_of_bytes(q_TI, weight_OI, scale_O)


def _product_of_bytes(q_TI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    packed, zero_O = _packed[weight_OI.data_ptr()], _no_shift(len(scale_O))
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        q_TI, 1.0, MIDDLE, packed, scale_O, zero_O, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out


@lru_cache(maxsize=32)
def _no_shift(outputs: int) -> Tensor:
    """Return what stands for zero in weights, zero_O."""
    return torch.zeros(outputs, dtype=torch.int32)


@_int8_product.register_fake
def _(q_TI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    return scale_O.new_empty(q_TI.shape[0], scale_O.shape[0])  # `len` would fix the size


def pack_int8(layer: nn.Module, weight_OI: Tensor) -> Tensor:
    """Pack a weight of int8; return what stands in for it as long as the layer lives."""
    packed = torch.ops.onednn.qlinear_prepack(weight_OI, [TOKENS, weight_OI.shape[1]])
    return _held(layer, packed, weight_OI)


def shifted(q_TI: Tensor) -> Tensor:
    """Return signed bytes as the unsigned ones that integer products take, in place."""
    return q_TI.view(torch.uint8).bitwise_xor_(MIDDLE)  # adds 128: the sign's bit is turned


def _held(owner: object, packed: Tensor, weight_OI: Tensor) -> Tensor:
    """Return a tensor of the weight's shape and of no size, by whose address it is found packed.

    The packed weight is given up when its owner is gone.
    """
    place_1 = weight_OI.new_zeros(1)
    _packed[place_1.data_ptr()] = packed
    finalize(owner, _packed.pop, place_1.data_ptr(), None)
    return place_1.expand(weight_OI.shape)


def plain(weight_OI: Tensor) -> Tensor:
    """Return a layer's weight as it was before it was packed, if it was."""
    packed = _packed.get(weight_OI.data_ptr())
    return weight_OI if packed is None else packed.to_dense()


@lru_cache(maxsize=1)
def processor() -> str:
    """Return the processor's maker and name, as far as the system tells them."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        known = [line.split(":", 1)[1].strip() for line in lines if line.startswith(_NAMES)]
        return " ".join(dict.fromkeys(known))
    return platform.processor() or platform.machine()


def _gains(dtype: torch.dtype) -> bool:
    """Tell whether packed weights are the faster ones.

    MKL, which PyTorch takes for float32, runs at half its rate or less on other makers' processors.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:
        return torch.backends.mkl.is_available() and "Intel" not in processor()
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Return all inner products of two sets of float32 vectors, by the faster library; out_NM."""
    if a_ND.shape[0] * b_MD.shape[0] < _MANY or not _gains(torch.float32):
        return a_ND @ b_MD.T
    out_NM: Tensor = torch.ops.mkldnn._linear_pointwise(a_ND, b_MD, None, "none", [], "")
    return out_NM


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Tell whether a module is a linear layer; a subclass may hold another thing (4 bits, say)."""
    return type(module) in (nn.Linear, _Prepacked)


def _packable(modules: Iterable[nn.Module]) -> Iterator[nn.Linear]:
    """Yield the plain linear layers of modules whose weights gain by being packed."""
    for module in modules:
        for layer in module.modules():
            if not is_linear(layer) or layer.weight.requires_grad:
                continue
            weight_OI = layer.weight
            plain_one = weight_OI.data_ptr() not in _packed
            if plain_one and weight_OI.device.type == "cpu" and _gains(weight_OI.dtype):
                yield layer


def prepare(modules: Iterable[nn.Module]) -> None:
    """Make layers ready to be packed, before any thread runs them.

    A thread inside nn.Linear's own forward could otherwise meet the packed weight.
    """
    for layer in _packable(modules):
        layer.__class__ = _Prepacked


def pack(modules: Iterable[nn.Module]) -> None:
    """Pack the weights of plain linear layers on a CPU, where that makes them faster.

    Other threads may be running the layers if they were made ready by `prepare`.
    """
    mapped = _mapped_files()
    for layer in _packable(modules):
        weight_OI = layer.weight
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), TOKENS)
        layer.__class__ = _Prepacked
        # A new parameter, which threads read once a product, and which owns the packed weight:
        # whoever holds it finds that.
        stand_in = _Owner()
        new = nn.Parameter(_held(stand_in, packed, weight_OI), requires_grad=False)
        new.packed = stand_in  # type: ignore[attr-defined]
        layer.weight = new
        _forget(weight_OI, mapped)


class _Owner:
    """Lives as long as the parameter that it is an attribute of."""

    __slots__ = ("__weakref__",)


def _mapped_files() -> list[tuple[int, int]]:
    """Return the address ranges where files are mapped privately, as safetensors maps weights."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    fields = [line.split(maxsplit=5) for line in lines]
    ranges = [row[0].split("-") for row in fields if len(row) == 6 and row[5].startswith("/")]
    return [(int(start, 16), int(end, 16)) for start, end in ranges]


def _forget(weight_OI: Tensor, mapped: list[tuple[int, int]]) -> None:
    """Let go of the pages of a weight that lies in a mapped file, once nobody holds the weight.

    Freeing the tensor frees no memory there, for its neighbours keep the mapping.
    """
    start = -(-weight_OI.data_ptr() // PAGESIZE) * PAGESIZE
    end = (weight_OI.data_ptr() + weight_OI.nbytes) // PAGESIZE * PAGESIZE
    if start < end and any(low <= start and end <= high for low, high in mapped):
        finalize(weight_OI, _drop_pages, start, end).atexit = False


def _drop_pages(start: int, end: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONT_NEED)


def unpack(modules: Iterable[nn.Module]) -> None:
    """Give the layers their plain weights back; other threads may be running them."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, _Prepacked) and layer.weight.data_ptr() in _packed:
                layer.weight = nn.Parameter(plain(layer.weight), requires_grad=False)
