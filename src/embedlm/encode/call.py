"""Around a pass of the engine: what it runs, by which adapter, and a check of what it gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.backbone import Backbone
from embedlm.backbone.adapters import check_adapter
from embedlm.encode.engine import Engine
from embedlm.encode.inputs import check_instructions
from embedlm.encode.items import Item, Part, Share, TokenIds
from embedlm.encode.options import AUTO, Options
from embedlm.errors import InputError, NotFiniteError
from embedlm.jobs.progress import progress
from embedlm.prompt.render import Renderer, Request
from embedlm.readout import Readout, frequency
from embedlm.readout.frequency import Statistics
from embedlm.readout.head import Collector
from embedlm.readout.heads import HEADS
from embedlm.schema.arguments import short
from embedlm.schema.recipe import Recipe

__all__ = [
    "Gathered",
    "adapter_names",
    "check_finite",
    "items_of",
    "order_of",
    "run_shares",
    "serving_adapter",
    "token_statistics",
]


def adapter_names(backbone: Backbone) -> tuple[str, ...]:
    """Return the names of the switchable adapters."""
    return () if backbone.adapters is None else backbone.adapters.names


def serving_adapter(backbone: Backbone, recipe: Recipe, options: Options) -> str | None:
    """Return the switchable adapter that serves a call; None: the base alone.

    Raises:
        InputError: the call names one that is not loaded.
    """
    names = adapter_names(backbone)
    if options.adapter != AUTO:
        check_adapter(backbone.adapters, options.adapter)
        return options.adapter
    roles = recipe.backbone.adapter_roles
    name = roles.get(options.role or "default", options.role)
    if name in names:
        return name
    return names[0] if len(names) == 1 and not roles else None


def items_of(parts: Sequence[Part], options: Options) -> list[Item]:
    """Return what is embedded: each part with its instruction."""
    checked = check_instructions(options.instruction, len(parts))
    instructions: Sequence[str | None] = checked or [None] * len(parts)
    return [Item(part, one) for part, one in zip(parts, instructions, strict=True)]


def run_shares(
    engine: Engine, shares: Sequence[Share], targets: int, options: Options
) -> list[Collector]:
    """Return the engine's outputs of shares, with a bar while it runs."""
    request = Request(options.role, options.demonstrations, options.max_length)
    with progress(options.show_progress, len(shares)) as bar:
        return engine.run(shares, targets, request, bar)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the heads of a readout gave for a call's texts."""

    collectors: Sequence[Collector]
    """One a head, with the outputs of each distinct text."""
    order_n: npt.NDArray[np.int64]
    """Which distinct text each of the call's is."""

    def value(self, head: int = 0) -> Any:
        """Return a head's outputs, in the order of the texts."""
        return self.collectors[head].value(self.order_n)

    def by_kind(self, readout: Readout) -> dict[str, Any]:
        """Return the outputs of all heads by their names."""
        return {head.kind: self.value(number) for number, head in enumerate(readout.heads)}


def order_of(items: Sequence[Item], unique: Sequence[Item]) -> npt.NDArray[np.int64]:
    """Return the place of each item among the unique ones."""
    number = {item: index for index, item in enumerate(unique)}
    return np.array([number[item] for item in items], dtype=np.int64)


def token_statistics(renderer: Renderer, texts: Sequence[str], vocab_size: int) -> Statistics:
    """Return how common tokens are in a corpus.

    Raises:
        InputError: no texts.
    """
    if not texts:
        raise InputError("fit needs at least one text")
    rows = (renderer.render([text], Request(), segments=False)[0].ids[0] for text in texts)
    return frequency.count(rows, vocab_size)


def check_finite(outputs: Mapping[str, Any], parts: Sequence[Part], backbone: Backbone) -> None:
    """Refuse outputs with NaN or infinity.

    Args:
        outputs: of each head, in the order of the texts.
        parts: the texts.
        backbone: whose dtype is the likely cause.

    Raises:
        NotFiniteError: names the first such text and holds the places of all.
    """
    wrong_n = np.zeros(len(parts), dtype=bool)
    for kind, value in outputs.items():
        wrong_n |= ~HEADS[kind].finite(value)
    if not wrong_n.any():
        return
    rows = np.flatnonzero(wrong_n).tolist()
    part = parts[rows[0]]
    shown = short(part.ids if isinstance(part, TokenIds) else part.text)
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    dtype = str(backbone.dtype).removeprefix("torch.")
    cause = (
        f"its numbers are too large for {dtype}, in which the network runs: load it with "
        "dtype='float32'"
        if backbone.dtype in (torch.float16, torch.bfloat16) or backbone.quantised
        else "the checkpoint's weights hold such values or overflow: check the files"
    )
    error = NotFiniteError(
        f"the model gave NaN or infinity for text {rows[0]} ({shown}){more}; most likely {cause}"
    )
    error.rows = tuple(rows)
    raise error
