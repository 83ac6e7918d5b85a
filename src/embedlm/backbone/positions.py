"""Which position ids a network gives its tokens by itself, measured on its own forward.

Classes count in different ways: from 0, from the padding id + 1 (RoBERTa, MPNet), from a table
that is offset inside the module (OPT). A packed row must be told its positions, so the way is
found by running the network without position ids and comparing.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embedlm.backbone.company import Rows

__all__ = [
    "LengthRope",
    "configured_positions",
    "counted",
    "find_length_rope",
    "learns_positions",
    "measured_positions",
    "original_frequencies",
]

_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
"""Names of modules that hold a learned vector a position (GPT-2, OPT, BERT and their kin)."""
_EXACT = {torch.float32: 1e-4, torch.float64: 1e-6}
_COARSE = 2e-2
"""The largest relative difference of equal states in half precision."""
_one_pass = threading.RLock()
"""Views share their buffers, which a pass with frequencies by length overwrites."""


def configured_positions(config: Any) -> int | None:
    """Return how many positions a text config names; None where it names none."""
    size = getattr(config, "max_position_embeddings", None)
    size = size or getattr(config, "n_positions", None)
    return int(size) if size and size > 0 else None


def learns_positions(network: nn.Module) -> bool:
    """Tell whether a network has a table with a learned vector for each position."""
    return any(name.rsplit(".", 1)[-1] in _POSITION_TABLES for name, _ in network.named_modules())


def counted(rows: Rows, uncounted: int | None) -> Rows:
    """Return the positions of rows' tokens from 0 on.

    An `uncounted` id takes none (RoBERTa's padding): it stands at -1, before the first.
    """
    if uncounted is None or not any(uncounted in row for row in rows):
        return [range(len(row)) for row in rows]
    return [_counted(row, uncounted) for row in rows]


def _counted(row: Sequence[int], uncounted: int) -> list[int]:
    positions, reached = [], -1
    for token in row:
        reached += token != uncounted
        positions.append(reached if token != uncounted else -1)
    return positions


def measured_positions(network: nn.Module, row: list[int]) -> tuple[int | None, int | None]:
    """Return the first token's position id and the token id that takes no position.

    The first is None where the network must count by itself, the second where all ids take one.

    Args:
        network: the body, on padded attention.
        row: token ids without the padding id.
    """
    accepts = inspect.signature(network.forward).parameters
    if "position_ids" not in accepts:
        return None, None
    device = next(network.parameters()).device
    fillers = _padding_ids(network)
    ids = [*row[:3], *fillers, *row[3:]]
    ids_1L = torch.tensor([ids], device=device)
    inputs: dict[str, Any] = {"input_ids": ids_1L, "attention_mask": torch.ones_like(ids_1L)}
    if "use_cache" in accepts:
        inputs["use_cache"] = False
    reference_1LD = _states(network, inputs)
    best: tuple[int, int | None] = (0, None)
    least = math.inf
    for first, uncounted in _ways(fillers):
        positions = torch.tensor(list(counted([ids], uncounted)[0]), device=device)
        error = _error(network, {**inputs, "position_ids": positions[None] + first}, reference_1LD)
        if error < least:
            best, least = (first, uncounted), error
        if error == 0:
            break
    return best if least < _EXACT.get(reference_1LD.dtype, _COARSE) else (None, None)


def _padding_ids(network: Any) -> list[int]:
    """Return the token ids that tables of the network call padding."""
    found = {getattr(module, "padding_idx", None) for module in network.modules()}
    size = network.config.get_text_config().vocab_size
    return sorted(index for index in found if isinstance(index, int) and 0 <= index < size)


def _ways(fillers: list[int]) -> Iterator[tuple[int, int | None]]:
    """Yield the ways in which a class could count: the first position, and the id it skips."""
    yield 0, None
    for filler in fillers:
        yield filler + 1, filler
        yield filler + 1, None
        yield 0, filler


def _error(network: nn.Module, inputs: dict[str, Any], reference: Tensor) -> float:
    try:
        return _difference(_states(network, inputs), reference)
    except (IndexError, RuntimeError, TypeError, ValueError):  # positions of another form
        return math.inf


def _states(network: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return network(**inputs).last_hidden_state  # type: ignore[no-any-return]


def _difference(states: Tensor, reference: Tensor) -> float:
    size = reference.float().norm().clamp_min(1e-9)
    return float((states.float() - reference.float()).norm() / size)


@dataclass(frozen=True, slots=True)
class LengthRope:
    """Rotary frequencies that depend on the longest row of a pass (longrope, dynamic NTK).

    Rows of unlike frequencies run in passes of their own, so that no vector depends on its company.
    """

    limit: int
    """Tokens of the longest row that has the original frequencies."""
    per_length: bool
    """Whether each longer length has frequencies of its own (dynamic), or all share theirs."""

    def group(self, length: int) -> int:
        """Return a number that is equal for lengths of equal frequencies."""
        if length <= self.limit:
            return 0
        return length if self.per_length else 1


def find_length_rope(network: nn.Module) -> LengthRope | None:
    """Return how a network's rotary frequencies depend on lengths; None where they do not."""
    kinds: list[tuple[str, int]] = []
    for module in network.modules():
        rope_type = getattr(module, "rope_type", None)
        named = rope_type if isinstance(rope_type, dict) else {None: rope_type}
        for layer_type, kind in named.items():
            if not isinstance(kind, str) or not ("dynamic" in kind or kind == "longrope"):
                continue
            if kind == "longrope":
                parameters = module.config.rope_parameters  # type: ignore[union-attr]
                parameters = parameters[layer_type] if layer_type else parameters  # type: ignore[index]
                kinds.append((kind, int(parameters["original_max_position_embeddings"])))  # type: ignore[index]
            else:
                kinds.append((kind, int(module.original_max_seq_len)))  # type: ignore[arg-type]
    if not kinds:
        return None
    return LengthRope(
        min(limit for _, limit in kinds), any(kind != "longrope" for kind, _ in kinds)
    )


@contextmanager
def original_frequencies(network: nn.Module) -> Iterator[None]:
    """Run one pass at a time, and give dynamic rotary modules their frequencies back after it."""
    with _one_pass:
        try:
            yield
        finally:
            for module in network.modules():
                rope_type = getattr(module, "rope_type", None)
                named = rope_type if isinstance(rope_type, dict) else {None: rope_type}
                for layer_type, kind in named.items():
                    if isinstance(kind, str) and "dynamic" in kind:
                        _restore(module, f"{layer_type}_" if layer_type else "")


def _restore(module: Any, prefix: str) -> None:
    before = getattr(module, f"{prefix}inv_freq")
    original = getattr(module, f"{prefix}original_inv_freq").to(before.device)
    module.register_buffer(f"{prefix}inv_freq", original, persistent=False)
    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
