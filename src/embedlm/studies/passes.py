"""Which variants of a study read the same token states, so that one pass over the texts serves all.

They differ in the layer and the kind of pooling, in a linear layer after it, and in the width,
length and precision of vectors. What is run, the network and the prompt, is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from embedlm.embedder import Embedder
from embedlm.studies.design import Level, Variant
from embedlm.studies.one_pass import FORM

__all__ = ["one_pass_serves", "pass_groups"]

_READ = ("pooling.layer", "pooling.kind", "pooling.exclude_sink")
"""Fields of a recipe that say what is read of the states."""


def pass_groups(chosen: Iterable[Variant]) -> list[list[Variant]]:
    """Return the variants in groups, each in order: together those that may share a pass."""
    groups: dict[str, list[Variant]] = {}
    for number, variant in enumerate(chosen):
        alone = _depends_on_reading(variant.settings)
        key = str(number) if alone else _what_is_run(variant.settings)
        groups.setdefault(key, []).append(variant)
    return list(groups.values())


def _depends_on_reading(settings: Level) -> bool:
    """Tell whether what is run is itself made by reading the states: tuned, or searched for."""
    shots = settings.demonstrations
    return settings.train is not None or (shots is not None and shots.choose == "searched")


def _what_is_run(settings: Level) -> str:
    """Return a variant's settings without those of reading."""
    change = {name: value for name, value in settings.change.items() if name not in _READ}
    encode = {name: value for name, value in settings.encode.items() if name not in FORM}
    fields = {"change": change, "encode": encode, "reduce": None, "calibration": None, "x": None}
    return settings.model_copy(update=fields).model_dump_json()


def one_pass_serves(embedders: Sequence[Embedder]) -> bool:
    """Tell whether the embedders of a group can be read from one pass.

    Each needs a dense head alone and a network with layers; what is learnt from a corpus is learnt
    for one embedder at a time.
    """
    first = embedders[0]
    return len(embedders) > 1 and all(
        one.backbone is first.backbone
        and not one.backbone.static
        and not one.routes
        and bool(one.backbone.layer_count)
        and [head.kind for head in one.recipe.heads] == ["dense"]
        and not one.recipe.pooling.reads_statistics
        and one.recipe.pooling.over == first.recipe.pooling.over
        for one in embedders
    )
