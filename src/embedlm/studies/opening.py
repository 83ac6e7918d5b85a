"""Opens the model of each variant of a study; the network is loaded anew only where it must be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.data import existing, field_texts
from embedlm.embedder import Embedder
from embedlm.errors import InputError, RecipeError, UnsupportedError
from embedlm.evaluation.readers import read_pairs
from embedlm.jobs.user_cache import user_cache
from embedlm.loader import load
from embedlm.schema.base import set_path, validated
from embedlm.schema.plan import Plan
from embedlm.schema.recipe import Recipe
from embedlm.studies.demonstrations import default_candidates, search_demonstrations
from embedlm.studies.design import Level, Reduction, Shots, Study, Texts
from embedlm.studies.reduction import reduced
from embedlm.training import train

__all__ = ["Opener"]


@dataclass
class Opener:
    """Where a study's models come from."""

    study: Study
    data: Path | None
    """The folder of the data sets; None: none is needed, or it was not given."""
    model: str | None = None
    """Instead of the study's."""
    work: Path | None = None
    """Folder of trained models and searches, which are done once."""
    device: Any = None
    dtype: Any = "auto"
    _last: tuple[str | None, Embedder] | None = field(default=None, repr=False)

    def open(self, settings: Level) -> Embedder:
        """Return the model of a variant.

        Raises:
            InputError: files that are not there, or settings that the model cannot have.
            RecipeError: a recipe or plan that is not valid.
        """
        made = self._loaded if settings.train is None else self._trained
        embedder = made(settings)
        if settings.demonstrations is not None:
            embedder = self._shown(embedder, settings.demonstrations)
        if settings.reduce is not None:
            embedder = self._reduced(embedder, settings.reduce)
        if settings.calibration is not None:
            embedder = self._calibrated(embedder, settings.calibration, settings)
        return embedder

    def _folder(self, kind: str) -> Path:
        folder = (self.work or user_cache() / "studies") / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _file(self, name: str, what: str) -> Path:
        path = None if self.data is None else existing(self.data / name)
        if path is None:
            where = name if self.data is None else self.data / name
            raise InputError(
                f"{what} are to be read from {where}, which is not there (nor with .gz, .xz, .zst);"
                " give the folder that holds it (--data, EMBEDLM_DATA)"
            )
        return path

    # -- loading ------------------------------------------------------------------------------

    def _loaded(self, settings: Level) -> Embedder:
        name = settings.model or self.model
        name = None if name == "builtin" and settings.recipe is not None else name
        given = settings.recipe
        recipe = self._own(name).recipe if given is None else Recipe.load(given)
        if settings.change:
            recipe = recipe.override(settings.change)
        return self._by(name, recipe)

    def _own(self, name: str | None) -> Embedder:
        """Return a model by its own recipe."""
        return self._remember(name, load(name, device=self.device, dtype=self.dtype))

    def _by(self, name: str | None, recipe: Recipe) -> Embedder:
        """Return a model by a recipe: the network that was loaded last, where it fits."""
        if self._last is not None and self._last[0] == name:
            embedder = self._last[1]
            if embedder.recipe == recipe:
                return embedder
            # A native mask would be that of whatever is loaded: the fields must be the same.
            if embedder.recipe.backbone == recipe.backbone:
                with suppress(UnsupportedError):  # loading can do it, or tells why not
                    return embedder.with_recipe(recipe)
        self._last = None  # two networks at once would need the memory of both
        return self._remember(name, load(name, recipe, device=self.device, dtype=self.dtype))

    def _remember(self, name: str | None, embedder: Embedder) -> Embedder:
        self._last = (name, embedder)
        return embedder

    # -- training -----------------------------------------------------------------------------

    def _trained(self, settings: Level) -> Embedder:
        """Return the model that the study's plan, changed by a level, trains; trained once."""
        assert settings.train is not None
        plan = self._plan(settings.train, settings.model or self.model)
        text = json.dumps(plan.model_dump(mode="json"), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._last = None
        folder = self._folder("trained") / digest
        embedder = train(plan, folder, data=self.data, device=self.device)
        recipe = embedder.recipe
        if settings.recipe is not None:
            recipe = Recipe.load(settings.recipe)
        if settings.change:
            recipe = recipe.override(settings.change)
        return embedder if recipe == embedder.recipe else embedder.with_recipe(recipe)

    def _plan(self, changes: Mapping[str, Any], model: str | None) -> Plan:
        if self.study.train is None:
            plan = validated(Plan, changes, f"{self.study.name}: train")
        else:
            fields = self.study.train.model_dump(mode="json", exclude_unset=True)
            for path, value in changes.items():
                set_path(fields, path, value)
            plan = validated(Plan, fields, f"{self.study.name}: train")
        if not plan.stages:
            raise RecipeError(f"{self.study.name}: train: write the plan's stages")
        return plan if model is None else plan.model_copy(update={"model": model})

    # -- what is added to a model -------------------------------------------------------------

    def _shown(self, embedder: Embedder, shots: Shots) -> Embedder:
        """Return the model with demonstrations in its prompt."""
        if embedder.recipe.prompt.demonstration is None:
            raise InputError(
                f"{self.study.name}: demonstrations are to be shown, and the recipe "
                f"{embedder.recipe.name!r} takes none; take prompteol-icl, or give the recipe a "
                "prompt.demonstration"
            )
        pool = default_candidates()[: shots.candidates]
        if shots.count > len(pool):
            raise InputError(
                f"{self.study.name}: {shots.count} demonstrations are asked for, and there are "
                f"{len(pool)} candidates"
            )
        if shots.choose == "random":
            order = np.random.default_rng(shots.seed).permutation(len(pool))
            chosen = [pool[i] for i in order[: shots.count].tolist()]
        else:
            chosen = self._searched(embedder, pool, shots)
        recipe = embedder.recipe.override({"prompt.demonstrations": chosen})
        return embedder.with_recipe(recipe)

    def _searched(
        self, embedder: Embedder, pool: list[dict[str, str]], shots: Shots
    ) -> list[dict[str, str]]:
        """Return the candidates that score best alone, the best one last, next to the text."""
        if not shots.count:
            return []
        path = self._file(shots.dev, "the dev pairs")
        dev = read_pairs(path)[: shots.pairs]
        facts = [embedder.name, embedder.recipe.model_dump_json(), shots.dev, len(dev), len(pool)]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        log = self._folder("demonstrations") / f"{digest}.jsonl"
        scored = search_demonstrations(embedder, dev, pool, log=log)
        best = [one for one in scored if one.query][: shots.count]
        return [{"query": one.query, "response": one.response} for one in reversed(best)]

    def _reduced(self, embedder: Embedder, reduction: Reduction) -> Embedder:
        texts = [] if reduction.texts is None else self._texts(reduction.texts)
        return reduced(embedder, reduction.kind, reduction.dim, texts)

    def _calibrated(self, embedder: Embedder, texts: Texts, settings: Level) -> Embedder:
        """Return the model with the ranges of int8 and uint8 that texts have."""
        form = {k: v for k, v in settings.encode.items() if k in ("dim", "normalize")}
        copy = embedder.with_recipe(embedder.recipe)
        return copy.fit_ranges(self._texts(texts), **form)

    def _texts(self, texts: Texts) -> list[str]:
        path = self._file(texts.file, "texts")
        return list(islice(field_texts(path, texts.field), texts.count))
