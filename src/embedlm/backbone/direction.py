"""Whether tokens see what follows them: set at load, and turned for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedlm.backbone.network import Backbone

__all__ = ["looking", "set_direction"]


def _places(backbone: Backbone) -> list[Any]:
    """Return everything that an architecture may read the direction from."""
    places: list[Any] = [backbone.config, backbone.text_config]
    for module in backbone.model.modules():
        if isinstance(getattr(module, "is_causal", None), bool):
            places.append(module)
        own = getattr(module, "config", None)
        if own is not None and own is not backbone.config:
            places.append(own)
    return list({id(place): place for place in places}.values())


def set_direction(backbone: Backbone, wanted: str) -> None:
    """Ask for the direction everywhere an architecture may read it; the probe tells the truth."""
    if wanted == "native":
        return
    for place in _places(backbone):
        place.is_causal = wanted == "causal"


@contextmanager
def looking(backbone: Backbone, wanted: str) -> Iterator[None]:
    """Run what is inside in one direction, causal or bidirectional, and turn back.

    Layers keep their compiled forms: the direction is no part of a packed layer's graph.
    """
    causal = wanted == "causal"
    if backbone.causal == causal:
        yield
        return
    missing = object()
    places = _places(backbone)
    before = [vars(place).get("is_causal", missing) for place in places]
    set_direction(backbone, wanted)
    backbone.causal = causal
    try:
        yield
    finally:
        backbone.causal = not causal
        for place, value in zip(places, before, strict=True):
            if value is missing:
                vars(place).pop("is_causal", None)
            else:
                place.is_causal = value
