"""Other recipes over the networks that are served: a request may name one beside its model.

A recipe changes the prompt, the pooling and the heads; the weights are never loaded twice. Few are
kept at once, and they are made where models run, in turn with all other work.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import embedlm
from embedlm.errors import EmbedLMError, UnsupportedError, closest
from embedlm.readout import OtherNetworkError
from embedlm.readout.heads import HEADS, requested_heads
from embedlm.schema.recipe import Recipe
from embedlm.serving.encoding import Served
from embedlm.serving.failures import UnknownNameError, called

__all__ = ["Recipes", "facts_of"]

KEPT = 8
"""Models by another recipe that are kept; the one that was used longest ago is let go."""
COST = 512
"""Of making one, in tokens."""


@dataclass(frozen=True, slots=True)
class _Making:
    """Makes a model by other recipes; equal ones run together."""

    served: Served

    def run(self, names: Sequence[str]) -> list[Served | EmbedLMError]:
        """Return for each recipe the model, or why it cannot be."""
        return [self._made(name) for name in names]

    def _made(self, name: str) -> Served | EmbedLMError:
        recipe = Recipe.load(name)
        if recipe.transform is not None:
            return UnsupportedError(
                f"recipe {name!r} has each text rewritten by a language model, which takes long; "
                "serve a model with it, and name that model"
            )
        try:
            model = self.served.model.with_recipe(recipe)
            if any(head.reads_lm_head for head in model.readout.heads):
                model.backbone.check_head()
            model.render(["a"])  # one that reads images alone does not serve texts
        except OtherNetworkError as error:
            return UnsupportedError(
                f"{error.reason}; take a recipe that fits (GET /v1/served lists them), or have a "
                f"server started with this one: embedlm serve MODEL -r {name}"
            )
        except EmbedLMError as error:
            return error
        return Served(self.served.name, model)


@dataclass(slots=True)
class Recipes:
    """Models by recipes that they were not loaded with."""

    kept: OrderedDict[tuple[Served, str], Served] = field(default_factory=OrderedDict)
    fitting: dict[Served, list[dict[str, Any]]] = field(default_factory=dict)
    """What is known of the recipes that fit each model."""

    async def model(self, service: Any, caller: Any, served: Served, name: str | None) -> Served:
        """Return a served model by a recipe; None: by its own.

        Raises:
            UnknownNameError: no such recipe.
            UnsupportedError: it wants the network itself otherwise, or layers that are not there.
        """
        if name is None or name == served.model.recipe.name:
            return served
        if name not in embedlm.recipes():
            fitting = [one["name"] for one in await self.fit(service, caller, served)]
            raise UnknownNameError(
                f"the recipe {name!r} is not known; GET /v1/served lists those that fit the model "
                f"{served.name!r}.{closest(name, fitting)}"
            )
        place = (served, name)
        if place not in self.kept:
            (made,) = await service.result(caller, _Making(served), [name], [COST])
            if isinstance(made, EmbedLMError):
                with called(served.places):
                    raise made
            self.kept.setdefault(place, made)
        self.kept.move_to_end(place)
        found = self.kept[place]
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return found

    async def fit(self, service: Any, caller: Any, served: Served) -> list[dict[str, Any]]:
        """Return what is to be known of each recipe that fits a model, its own first."""
        if served not in self.fitting:
            names = [name for name in embedlm.recipes() if name != served.model.recipe.name]
            made = await service.result(caller, _Listing(served), names, [COST] * len(names))
            own = facts_of(served.model)
            self.fitting[served] = [own, *(one for one in made if one is not None)]
        return self.fitting[served]


@dataclass(frozen=True, slots=True)
class _Listing:
    """Finds out which recipes fit a model."""

    served: Served

    def run(self, names: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return for each recipe what is to be known of it; None: it does not fit."""
        made = _Making(self.served).run(names)
        return [facts_of(one.model) if isinstance(one, Served) else None for one in made]


def facts_of(model: Any) -> dict[str, Any]:
    """Return what a caller may choose where a model is read by its recipe."""
    recipe, pooling = model.recipe, model.recipe.pooling
    roles = [None, *model.renderer.roles()]
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "heads": [head.kind for head in recipe.heads],
        "more_heads": [head for head in HEADS if _may_give(model, head)],
        "roles": roles[1:],
        "instructed": [role for role in roles if model.takes_instruction(role)],
        "pooling": {
            "kind": pooling.kind,
            "over": pooling.over,
            "layer": pooling.layer,
            "exclude_sink": pooling.exclude_sink,
        },
    }


def _may_give(model: Any, head: str) -> bool:
    """Tell whether a head that is not the recipe's own can be asked for."""
    if head in [one.kind for one in model.recipe.heads]:
        return False
    readout = model.readout
    several = len(model.renderer.templates(None)) > 1
    try:
        asked = requested_heads([head], model.recipe, several=several, trained=readout.trained)
        if any(one.reads_lm_head for one in readout.with_heads(asked).heads):
            model.backbone.check_head()
    except EmbedLMError:
        return False
    return True
