"""A language-model head apart from its body: it reads states that are handed to it.

A head of transformers runs its body and then its own layers. Here a stand-in takes the body's place
and returns states that were computed before, so that the architecture's own code makes the logits.

Shapes: T tokens, D width of a state, V vocabulary.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from embedlm.errors import UnsupportedError

__all__ = ["BodyStandIn", "detach_head", "has_body", "lacks_head", "logits_of", "stand_in"]


class _Handed(threading.local):
    h_1TD: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy nothing: what a thread hands over is gone with its pass."""
        return _Handed, ()


class BodyStandIn(nn.Module):
    """Takes the body's place in a language model and returns the states this thread hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.handed = _Handed()

    @property
    def decoder(self) -> BodyStandIn:
        """Return itself: OPT's head calls the decoder inside its body."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return the states."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.handed.h_1TD)


def has_body(language_model: nn.Module) -> bool:
    """Tell whether a language model has its body where its class says."""
    return hasattr(language_model, str(language_model.base_model_prefix))


def detach_head(language_model: nn.Module) -> nn.Module:
    """Put a stand-in in the place of a language model's body, and return the body."""
    attribute = str(language_model.base_model_prefix)
    body: nn.Module = getattr(language_model, attribute)
    setattr(language_model, attribute, BodyStandIn())
    return body


def lacks_head(name: str) -> UnsupportedError:
    """Return the error of a model whose head is needed and was not loaded."""
    return UnsupportedError(
        f"{name!r} was loaded with no language-model head, which a sparse head "
        "and a model that writes need; load a checkpoint of a causal or masked language "
        "model with lm_head=True, or with a recipe that has a sparse head"
    )


def stand_in(head: nn.Module) -> BodyStandIn:
    """Return what stands in the place of a head's body."""
    module = getattr(head, str(head.base_model_prefix))
    assert isinstance(module, BodyStandIn)
    return module


def logits_of(head: nn.Module, h_TD: Tensor) -> Tensor:
    """Return the logits of final states, logits_TV."""
    handed = stand_in(head).handed
    handed.h_1TD = h_TD[None]
    try:
        ids_1T = torch.zeros(1, len(h_TD), dtype=torch.long, device=h_TD.device)
        return head(input_ids=ids_1T).logits[0]  # type: ignore[no-any-return]
    finally:
        handed.h_1TD = None
