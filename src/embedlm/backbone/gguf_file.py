"""Reading a GGUF file: its settings, its table of tensors, and their values in float32.

Source: the format's description, ggml-org/ggml `docs/gguf.md`. Blocks of quantised values are
expanded by the `gguf` package (extra `gguf`). The package's own reader takes 10 seconds for a
vocabulary of 50,000 tokens, since it makes an array of each string; this one takes 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from embedlm.errors import ModelError, require

__all__ = ["GgufFile", "StoredTensor", "read_gguf"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Bytes to which tensors are aligned where the file does not say."""
LIMIT = 1 << 20
"""More settings, tensors or dimensions than this are damage."""
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: its name, its shape in PyTorch's order, its type and where it lies."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    """Bytes from the start of the file."""


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file: settings by name, and tensors."""

    path: Path
    settings: dict[str, Any]
    tensors: tuple[StoredTensor, ...]
    start: int
    """Where the tensors begin, in bytes from the start of the file."""
    alignment: int

    @property
    def architecture(self) -> str:
        """The network's kind in llama.cpp's words, such as llama or qwen2."""
        return str(self.settings.get("general.architecture", ""))

    def of_architecture(self, name: str, default: Any = None) -> Any:
        """Return a setting whose name begins with the architecture's."""
        return self.settings.get(f"{self.architecture}.{name}", default)

    def check_places(self) -> None:
        """Refuse a table of tensors that do not lie one behind another, each once.

        Raises:
            ModelError: naming a tensor; or the file is truncated.
        """
        place, seen, size = self.start, set(), self.path.stat().st_size
        for tensor in self.tensors:
            if tensor.name in seen:
                raise ModelError(
                    f"{self.path} is damaged: it holds the tensor {tensor.name!r} twice; get it "
                    "again"
                )
            seen.add(tensor.name)
            if tensor.start != place:
                raise ModelError(
                    f"{self.path} is damaged: the tensor {tensor.name!r} begins at byte "
                    f"{tensor.start}, and the tensors before it end at {place}; get it again"
                )
            end = tensor.start + _stored_as(self.path, tensor)[1]
            place = _aligned(end, self.alignment)
            if end > size:
                raise _truncated(self.path, size, end)

    def values(
        self, names: Collection[str] | None = None
    ) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Yield each tensor's name and its values in float32, in PyTorch's order of dimensions.

        Args:
            names: only these tensors; None is all.

        Raises:
            ModelError: as `check_places`, or a type whose values cannot be expanded.
        """
        self.check_places()
        content = np.memmap(self.path, mode="r", dtype=np.uint8)
        for tensor in self.tensors:
            if names is not None and tensor.name not in names:
                continue
            yield tensor.name, self._values(content, tensor)

    def _values(self, content: Any, tensor: StoredTensor) -> npt.NDArray[np.float32]:
        package = require("gguf", "gguf")
        kind, count = _stored_as(self.path, tensor)
        bytes_ = np.asarray(content[tensor.start : tensor.start + count])
        stored = bytes_.reshape(*tensor.shape[:-1], count // prod(tensor.shape[:-1]))
        try:
            values = package.dequantize(stored, kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: the tensor {tensor.name!r} is stored as {kind.name}, which cannot "
                "be expanded; take the file in Q4_K_M, Q5_K_M, Q6_K, Q8_0, F16 or BF16"
            ) from error
        return np.ascontiguousarray(values, dtype=np.float32).reshape(tensor.shape)


def _stored_as(path: Path, tensor: StoredTensor) -> tuple[Any, int]:
    """Return the type in which a tensor is stored, as the `gguf` package names it, and its bytes.

    Raises:
        ModelError: a type that is not known, or a shape that it cannot hold.
    """
    package = require("gguf", "gguf")
    try:
        kind = package.GGMLQuantizationType(tensor.type)
    except ValueError as error:
        raise ModelError(
            f"{path}: the tensor {tensor.name!r} is stored in the unknown type {tensor.type}; a "
            "newer gguf package may know it: pip install -U gguf"
        ) from error
    block, size = package.GGML_QUANT_SIZES[kind]
    if not tensor.shape or not all(tensor.shape) or tensor.shape[-1] % block:
        raise ModelError(
            f"{path}: the tensor {tensor.name!r} has the shape {list(tensor.shape)}, which blocks "
            f"of {block} ({kind.name}) cannot hold; get the file again"
        )
    return kind, prod(tensor.shape) // block * size


def read_gguf(path: Path) -> GgufFile:
    """Read a file's settings and its table of tensors, none of their values.

    Raises:
        ModelError: the file is no GGUF, is truncated or is damaged.
    """
    try:
        content = np.memmap(path, mode="r", dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise ModelError(f"the file {path} cannot be read: {error}") from error
    reader = _Reader(path, content)
    if bytes(content[:4]) != MAGIC:
        raise ModelError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
    reader.position = 4
    version = reader.number("I")
    if version not in VERSIONS:
        raise ModelError(f"{path} is GGUF version {version}; EmbedLM reads {VERSIONS}")
    tensors, settings = reader.count(), reader.count()
    named = {}
    for _ in range(settings):
        name = reader.string()
        if name in named:
            raise ModelError(f"{path} is damaged: it sets {name} twice; get it again")
        named[name] = reader.value(reader.number("I"))
    table = [reader.tensor() for _ in range(tensors)]
    alignment = named.get("general.alignment", ALIGNMENT)
    is_power = type(alignment) is int and alignment > 0 and alignment & (alignment - 1) == 0
    if not is_power:
        raise ModelError(
            f"{path} is damaged: general.alignment is {alignment!r}; it is a power of 2, such as "
            f"{ALIGNMENT}"
        )
    start = _aligned(reader.position, alignment)
    placed = (StoredTensor(t.name, t.shape, t.type, t.start + start) for t in table)
    return GgufFile(path, named, tuple(placed), start, alignment)


class _Reader:
    """Reads one value after another."""

    def __init__(self, path: Path, content: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.content = memoryview(cast("Any", content))
        self.position = 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        end = self.position + size
        if end > len(self.content):
            raise _truncated(self.path, len(self.content), end)
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, kind: str) -> Any:
        """Return the next number; `kind` is a letter of `struct`."""
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def count(self) -> int:
        """Return a count of settings, tensors or dimensions."""
        value = int(self.number("Q"))
        if value > LIMIT:
            raise ModelError(f"{self.path} is damaged: it counts {value} settings or tensors")
        return value

    def string(self) -> str:
        """Return the next string; bytes that are no UTF-8 are replaced."""
        return bytes(self.take(self.number("Q"))).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Return the next value of a setting."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ModelError(f"{self.path} is damaged: a setting has the unknown type {kind}")
        inner, length = self.number("I"), int(self.number("Q"))
        if inner in _SCALARS:
            letter = _SCALARS[inner]
            return list(
                struct.unpack(f"<{length}{letter}", self.take(length * struct.calcsize(letter)))
            )
        if inner != _STRING or length > len(self.content):
            raise ModelError(f"{self.path} is damaged: a list holds values of the type {inner}")
        return [self.string() for _ in range(length)]

    def tensor(self) -> StoredTensor:
        """Return the next row of the table of tensors."""
        name = self.string()
        dimensions = self.number("I")
        if dimensions > 8:
            raise ModelError(
                f"{self.path} is damaged: the tensor {name!r} has {dimensions} dimensions"
            )
        shape = tuple(int(self.number("Q")) for _ in range(dimensions))
        return StoredTensor(name, shape[::-1], int(self.number("I")), int(self.number("Q")))


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _truncated(path: Path, has: int, needs: int) -> ModelError:
    return ModelError(
        f"{path} is truncated or damaged: it has {has} bytes and would need {needs}; get it again"
    )
