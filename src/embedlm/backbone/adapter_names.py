"""The names by which an adapter's files know a network, brought to those that the network has.

An adapter that was trained on a whole model says `model.layers`, one of the body alone `layers`.
Its config names modules too: by full names, by their ends, or by patterns. peft passes over those
that fit nothing, and then takes another scale or rank without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from embedlm.errors import require

__all__ = ["HEADS", "WRAPPER", "fitted_names"]

WRAPPER = "base_model.model."
"""What peft writes before the name of each weight."""
HEADS = ("lm_head", "embed_out")
"""Names of language-model heads."""
_ENDS = ("target_parameters", "modules_to_save", "feedforward_modules")
"""Fields of a config with names of which the ends count."""
_CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""Fields that choose among what `target_modules` fits."""


@dataclass(frozen=True, slots=True)
class _Way:
    """How an adapter's names differ from a network's."""

    cut: str
    """What its names begin with, and the network's do not."""
    lead: str
    """The reverse."""

    def here(self, name: str) -> str:
        """Return the network's name for one of the adapter's."""
        return self.lead + name.removeprefix(self.cut)

    def there(self, name: str) -> str:
        """Return the adapter's name for one of the network's."""
        return self.cut + name.removeprefix(self.lead)


def fitted_names(
    state: Mapping[str, Tensor], config: Any, network: nn.Module
) -> dict[str, Tensor] | None:
    """Return an adapter's weights under names that fit a network, with or without its head.

    What it has for a language-model head is left out where the network was loaded without one.

    Args:
        state: the adapter's weights.
        config: of peft; its names are changed likewise, in place.
        network: that is to have the adapter; others may lie on it.

    Returns:
        The weights; None: they fit nothing there.
    """
    names = [name for name, _ in network.named_modules()]
    paths = [key.removeprefix(WRAPPER) for key in state]
    way = _way(paths, set(names), str(getattr(network, "base_model_prefix", "") or "model"))
    if way is None:
        return None
    if way.cut or way.lead:
        _rename(config, way, [name for name in names if name and ".base_layer" not in name])
    heads = [] if set(names) & set(HEADS) else [f"{head}." for head in HEADS]
    return {
        WRAPPER + way.here(path): value
        for path, value in zip(paths, state.values(), strict=True)
        if not path.startswith(tuple(heads))
    }


def _way(paths: Sequence[str], known: set[str], body: str) -> _Way | None:
    """Return how weights' names differ from those of a network's modules; None: too much."""

    def depth(way: _Way) -> int:
        """Return how many steps of the weights' paths there are in the network."""
        total = 0
        for path in paths:
            steps = way.here(path).split(".")
            total += next((n for n in range(len(steps), 0, -1) if ".".join(steps[:n]) in known), 0)
        return total

    best = max((_Way("", ""), _Way(f"{body}.", ""), _Way("", f"{body}.")), key=depth)
    return best if depth(best) else None


def _rename(config: Any, way: _Way, names: Sequence[str]) -> None:
    """Have a config say what it said of the network that its adapter was trained on.

    A field that means the same under both names stays as it is.
    """
    changes: dict[str, Any] = {}
    for field, value in vars(config).items():
        if field.endswith("_pattern") and isinstance(value, dict):
            changes[field] = _pattern(field, value, way, names)
        elif field in _ENDS and isinstance(value, list | tuple | set):
            changes[field] = type(value)(name.removeprefix(way.cut) for name in value)
        elif field == "trainable_token_indices" and isinstance(value, dict):
            changes[field] = {name.removeprefix(way.cut): ids for name, ids in value.items()}
        elif field == "feedforward_modules" and isinstance(value, str):
            changes[field] = _exactly(re.compile(value).fullmatch, way, names) or value
    targets = getattr(config, "target_modules", None)
    if targets is not None and targets != "all-linear":
        exists = require("peft.tuners.tuners_utils", "train").check_target_module_exists
        exact = _exactly(lambda name: exists(config, name), way, names)
        if exact is not None:
            changes |= {field: None for field in _CHOICES if hasattr(config, field)}
            changes["target_modules"] = exact
    for field, value in changes.items():
        setattr(config, field, value)


def _exactly(fits: Callable[[str], object], way: _Way, names: Sequence[str]) -> str | None:
    """Return a pattern of the network's names that fit by the adapter's; None: by both alike."""
    there = [name for name in names if fits(way.there(name))]
    if there == [name for name in names if fits(name)]:
        return None
    return "|".join(map(re.escape, there)) or "(?!)"


def _pattern(
    field: str, values: Mapping[str, Any], way: _Way, names: Sequence[str]
) -> dict[str, Any]:
    """Return the values of modules by patterns of their names, such as ranks."""
    if any(isinstance(value, list) for value in values.values()):  # AdaLoRA's, by weights
        return {way.here(name): value for name, value in values.items()}
    key_of = require("peft.utils.other", "train").get_pattern_key

    def value_of(name: str) -> Any:
        return values.get(key_of(values.keys(), name))

    there = {name: value_of(way.there(name)) for name in names}
    if there == {name: value_of(name) for name in names}:
        return dict(values)
    # FourierFT looks its pattern up by the name itself.
    plain = field == "n_frequency_pattern"
    return {
        name if plain else f"^{re.escape(name)}": value
        for name, value in there.items()
        if value is not None
    }
