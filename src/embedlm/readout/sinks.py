"""Attention sinks: tokens that heads attend to where they have nothing to attend to.

Their states are many times as long as the others' in most layers below the final norm (Xiao et al.,
arXiv:2309.17453; Sun et al., "Massive activations", arXiv:2402.17762), so that a mean over tokens
is little else than the sink. The first token is one whatever it is; in the lower layers a full stop
or a function word may be one too.

Shapes: T tokens of a pack, N pooled tokens, D width of a state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from embedlm.backbone import Backbone
from embedlm.backbone.layers import layer_index
from embedlm.backbone.network import Rows
from embedlm.backbone.quiet import quiet

log = logging.getLogger(__name__)

__all__ = ["TIMES", "StateNorms", "measured", "probe", "reads_inner", "warn_of_sink"]

TIMES = 4.0
"""A token is a sink whose state is this many times as long as a typical one.

In layers 12 to 29 of SmolLM2-135M the first token's state is 13 to 200 times as long as the median,
and no other more than 1.4 times (see docs/concepts.md).
"""
PROBE = (
    "A man is playing a guitar on the stage.",
    "Plants make food from sunlight, water and carbon dioxide.",
    "Shares of the company fell by 5% on Monday after it said that profits would be lower.",
    "How do I reset the password of my account?",
    "def add(a, b): return a + b",
    "The committee met on Tuesday; members asked why the plan had changed.",
)

Layers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StateNorms:
    """How long the states of some layers are over the texts of a probe."""

    typical: float
    """The median."""
    largest: float

    @classmethod
    def of(cls, h_TD: Tensor) -> StateNorms:
        """Measure states."""
        norm_T = h_TD.detach().float().norm(dim=-1)
        return cls(float(norm_T.median()), float(norm_T.max()))

    @property
    def has_sink(self) -> bool:
        """Whether a token of the probe is a sink."""
        return self.largest > TIMES * self.typical


def probe(backbone: Backbone) -> Rows:
    """Return the token ids of a few texts, with the special tokens that the tokenizer adds."""
    with quiet():
        rows = backbone.tokenizer(list(PROBE), truncation=False)["input_ids"]
    known = [[token for token in row if token < backbone.vocab_size] for row in rows]
    return [row[: backbone.max_positions] for row in known if row]


def measured(backbone: Backbone, layers: Layers, known: Mapping[Layers, StateNorms]) -> StateNorms:
    """Return how long the states of some layers are: as known, or measured by a pass.

    Where no token is a sink, a warning says so, once for a model and its layers.
    """
    if layers in known:
        return known[layers]
    with torch.no_grad():
        norms = StateNorms.of(backbone.run(probe(backbone), layers=layers))
    if not norms.has_sink:
        _warn_of_none(backbone.name, layers, norms.largest / max(norms.typical, 1e-9))
    return norms


def reads_inner(backbone: Backbone, layers: Layers) -> bool:
    """Tell whether some of the layers lie below the last."""
    count = backbone.layer_count
    return not backbone.static and any(layer_index(layer, count) != count for layer in layers)


def _told(layers: Layers) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


@lru_cache(maxsize=256)
def _warn_of_none(name: str, layers: Layers, times: float) -> None:
    log.warning(
        "pooling.exclude_sink leaves nothing out of ordinary texts: the longest state of %s of %s "
        "is %.1f times a typical one, and from %.0f times on a token is a sink",
        _told(layers),
        name,
        times,
        TIMES,
    )


@lru_cache(maxsize=256)
def warn_of_sink(name: str, layers: Layers) -> None:
    """Warn, once for a model and its layers, that a mean includes a sink."""
    log.warning(
        "the mean over the tokens' states of %s of %s includes an attention sink, whose state is "
        "more than %.0f times as long as the others' and hides them; set pooling.exclude_sink to "
        "norm (see Attention sinks on the page of concepts), or read the last layer",
        _told(layers),
        name,
        TIMES,
    )
