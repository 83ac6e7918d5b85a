"""Which position ids a network gives its tokens by itself, measured on its own forward.

Classes count in different ways: from 0, from the padding id + 1 (RoBERTa, MPNet), from a table
that is offset inside the module (OPT). A packed row must be told its positions, so the way is
found by running the network without position ids and comparing. Classes that count from the padding
id + 1 do not count a padding token that stands in a text: it gets the padding's position.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "LengthRope",
    "Rows",
    "configured_positions",
    "find_length_rope",
    "measured_first_position",
    "original_frequencies",
    "positions_around_padding",
    "run_by_frequency",
]

Rows = Sequence[Sequence[int]]

_EXACT = {torch.float32: 1e-4, torch.float64: 1e-6}
_COARSE = 2e-2
"""The largest relative difference of equal states in half precision."""
_one_pass = threading.RLock()
"""Views share their buffers, which a pass with frequencies by length overwrites."""


def configured_positions(config: Any) -> int | None:
    """Return how many positions a text config names; None where it names none."""
    size = getattr(config, "max_position_embeddings", None)
    return size or getattr(config, "n_positions", None)


def measured_first_position(network: nn.Module, row: list[int]) -> int | None:
    """Return the id of the first token's position; None where the network must count itself.

    Args:
        network: the body, on padded attention.
        row: token ids without the padding id.
    """
    accepts = inspect.signature(network.forward).parameters
    if "position_ids" not in accepts:
        return None
    errors = {first: _error(network, row, first) for first in _candidates(network)}
    best = min(errors, key=lambda first: (errors[first], first))
    allowed = _EXACT.get(next(network.parameters()).dtype, _COARSE)
    if best:  # a row that spells the padding token is told its positions in the same way
        errors[best] = max(errors[best], _error(network, [*row[:3], best - 1, *row[3:6]], best))
    return best if errors[best] < allowed else None


def _error(network: nn.Module, row: list[int], first: int) -> float:
    """Return how far the states of a row with counted positions are from the network's own."""
    ids_1L = torch.tensor([row], device=next(network.parameters()).device)
    inputs: dict[str, Any] = {"input_ids": ids_1L, "attention_mask": torch.ones_like(ids_1L)}
    if "use_cache" in inspect.signature(network.forward).parameters:
        inputs["use_cache"] = False
    counted = positions_around_padding([row], first) or [range(len(row))]
    positions_1L = torch.tensor([list(counted[0])], device=ids_1L.device) + first
    states_1LD = _states(network, {**inputs, "position_ids": positions_1L})
    return _difference(states_1LD, _states(network, inputs))


def positions_around_padding(rows: Rows, first: int | None) -> Rows | None:
    """Return the positions of rows of which one spells the padding token; None: count from 0.

    Args:
        rows: token ids.
        first: the id of the first token's position, one after the padding id; 0 or None: the
            network does not know padding tokens from others.
    """
    if not first or not any(first - 1 in row for row in rows):
        return None
    counted = []
    for row in rows:
        tokens = (np.asarray(row) != first - 1).astype(np.int64)
        counted.append((np.cumsum(tokens) * tokens - 1).tolist())
    return counted


def _candidates(network: nn.Module) -> list[int]:
    """Return the first positions that a class could count from: 0, and after each padding id."""
    after_padding = {
        padding_idx + 1
        for module in network.modules()
        if isinstance(padding_idx := getattr(module, "padding_idx", None), int)
    }
    return sorted({0, *after_padding})


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


def run_by_frequency(
    rope: LengthRope | None,
    run: Callable[[Rows, Sequence[int], Rows | None], Tensor],
    rows: Rows,
    unseen: Sequence[int],
    positions: Rows | None,
) -> Tensor:
    """Run rows of equal rotary frequencies together, each group in a pass of its own; h_TD."""
    if rope is None:
        return run(rows, unseen, positions)
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        reach = 1 + max(positions[index]) if positions else len(row)
        groups.setdefault(rope.group(reach), []).append(index)
    states: dict[int, Tensor] = {}
    for group in groups.values():
        h_TD = run(
            [rows[i] for i in group],
            [unseen[i] for i in group] if unseen else (),
            [positions[i] for i in group] if positions else None,
        )
        states.update(zip(group, h_TD.split([len(rows[i]) for i in group]), strict=True))
    return torch.cat([states[index] for index in range(len(rows))])
