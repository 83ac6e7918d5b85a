"""A plan's start, from its fields: which models and data it takes, and whether their widths fit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.backbone.adapter_files import split_adapters
from embedlm.backbone.config import load_config
from embedlm.compress import check_cut, prune
from embedlm.data import Records, read_records
from embedlm.errors import InputError
from embedlm.jobs import disk_errors
from embedlm.jobs.json_files import write_json
from embedlm.jobs.manifest import json_values
from embedlm.persistence import network_place
from embedlm.readout.new_projection import asked_projection
from embedlm.schema.plan import Plan, Prune, Ridge
from embedlm.schema.recipe import Recipe
from embedlm.schema.tuning import Data
from embedlm.training.devices import process_rank, wait_for_all
from embedlm.training.finished import fingerprint, is_finished, saved_dtype
from embedlm.training.language import LANGUAGE
from embedlm.training.plan import LocatedPlan, find_data, find_model, shown_name
from embedlm.training.stage_checks import check_instructions
from embedlm.training.starts import RidgeStart, ridge_teacher, wants_ridge
from embedlm.training.teacher_vectors import identity_of
from embedlm.training.trackers import EventHandler
from embedlm.training.widths import check_widths

__all__ = ["Start", "check_start"]

_NOT_READ = frozenset({"weight", "in_batch_negatives", "adapter"})
_NOT_COUNTED = _NOT_READ | {"instruction", "document_instruction"}
"""Fields of data that a regression, a count of tokens, and a measure of neurons have no use for."""


def check_start(source: LocatedPlan, data: str | Path | None) -> str | None:
    """Return the teacher of a projection that starts by ridge regression; None: there is none.

    Raises:
        InputError: no teacher, data that are no texts, or a teacher of another width.
    """
    plan = source.plan
    if plan.prune is not None:
        _check_prune(plan, find_model(plan.model, source.folder, data))
    distils = any(one.kind == "embedding_distill" for s in plan.stages for one in s.objective)
    if not (distils or plan.ridge is not None or _may_start(source)):
        return None
    model, recipe = find_model(plan.model, source.folder, data), source.recipe(data)
    asked = asked_projection(recipe)
    if plan.ridge is not None and (asked is None or asked.init != "ridge"):
        raise InputError(
            "the plan has `ridge`, and its recipe has no projection that starts so; add change: "
            "{heads: [{dense: {projection: {width: N, init: ridge}}}]}, or leave it out"
        )
    wanted = wants_ridge(recipe, model)
    if plan.ridge is not None and not wanted:
        raise InputError(
            f"the plan has `ridge`, and the model {plan.model!r} has a projection already, which "
            "training goes on from; leave `ridge` out"
        )
    teacher = ridge_teacher(plan) if wanted else None
    check_widths(plan, (model, recipe), lambda name: find_model(name, source.folder, data), teacher)
    if teacher is not None:
        own = plan.ridge.data if plan.ridge is not None else ()
        _check_data("ridge", own, plan, _NOT_READ)
    return None if teacher is None else find_model(teacher, source.folder, data)


def _may_start(source: LocatedPlan) -> bool:
    """Tell whether a plan's own fields may ask for a projection; what they name is read later."""
    plan = source.plan
    fields: Any = (plan.recipe, plan.change)
    return isinstance(plan.recipe, str) or "projection" in str(fields)


def _check_prune(plan: Plan, model: str) -> None:
    """Refuse what cannot be cut, from the model's config alone."""
    asked = plan.prune
    assert asked is not None
    if not (asked.layers or asked.vocabulary or asked.intermediate):
        raise InputError(
            "prune: nothing is to be cut; give one of layers, vocabulary and intermediate, or more"
        )
    config = load_config(network_place(split_adapters(model)[0])).get_text_config()
    check_cut(config, asked.layers, asked.intermediate, plan.model)
    if _reads_texts(asked):
        ridge = plan.ridge.data if plan.ridge is not None else ()
        _check_data("prune", asked.data, plan, _NOT_COUNTED, others=ridge)
    elif asked.data:
        raise InputError(
            "prune.data: tokens are counted in it for `vocabulary`, and neurons measured on it for "
            "`intermediate`; give one of them too, or leave the data out"
        )


def _reads_texts(asked: Prune) -> bool:
    """Tell whether texts say what is cut."""
    return asked.vocabulary is not None or asked.intermediate is not None


def _check_data(
    name: str,
    own: Sequence[Data],
    plan: Plan,
    senseless: frozenset[str],
    others: Sequence[Data] = (),
) -> None:
    """Refuse a start without texts, and fields of its data that it cannot honour.

    Args:
        name: the start's.
        own: its data sets.
        plan: the data of its first stage stand in for them.
        senseless: the fields that say nothing.
        others: data sets that stand in where there is no stage.
    """
    for entry in own:
        given = sorted(entry.model_fields_set & senseless)
        if given:
            raise InputError(
                f"{name}.data: {given[0]} says nothing where each text is read once; leave it out"
            )
    if not (own or others or plan.stages):
        raise InputError(
            f"{name}: there are no texts; name them: {name}: {{data: [{{source: F}}]}}"
        )


@dataclass(frozen=True, slots=True)
class Start:
    """What becomes of a plan's model before its first stage."""

    source: LocatedPlan
    teacher: str | None
    """Of a projection that starts by ridge regression."""
    data: str | Path | None
    device: Any

    def run(
        self,
        base: tuple[str, Recipe],
        sets: list[list[Records]],
        target: Path,
        report: EventHandler,
    ) -> str:
        """Cut the model and start its projection in the first process, where the plan asks for it.

        Args:
            base: the plan's model, and its recipe.
            sets: the records of each stage.
            target: the run's folder.
            report: receives events.

        Returns:
            The model that the first stage starts from.
        """
        model, recipe = base
        asked, places = self.source.plan.prune, {}
        if asked is not None:
            places["prune"] = target / "stage-0-prune"
        if self.teacher is not None:
            places["ridge"] = target / "stage-0-ridge"
        if process_rank() == 0:
            if asked is not None:
                self._prune(asked, model, sets, places["prune"], report)
                model = str(places["prune"] / "model")
            if self.teacher is not None:
                start = self._ridge((model, recipe), self.teacher, sets)
                start.run(places["ridge"], report)
        wait_for_all()
        return str([*places.values()][-1] / "model") if places else model

    def _prune(
        self,
        asked: Prune,
        model: str,
        sets: list[list[Records]],
        folder: Path,
        report: EventHandler,
    ) -> None:
        """Write the cut model, unless that is done."""
        plan = self.source.plan
        records = self._records(asked.data, sets) if _reads_texts(asked) else []
        last = not plan.stages and self.teacher is None
        save_dtype = (plan.save_dtype or saved_dtype(plan)) if last else None
        manifest = {
            "prune": asked.model_dump(mode="json"),
            "model": identity_of(model),
            "data": [fingerprint(one) for one in records],
            "save_dtype": save_dtype,
        }
        if is_finished(folder, manifest):
            report("resume", {"stage": "prune", "finished": True})
            return
        report("stage", {"stage": "prune", "model": shown_name(model)})
        with disk_errors(folder, "Make room and run the same command again"):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "model", ignore_errors=True)  # of a run that was killed right after
        texts = (text for one in records for text in one.texts())
        facts = prune(
            model,
            folder / "model",
            layers=asked.layers,
            vocabulary=asked.vocabulary,
            intermediate=asked.intermediate,
            texts=texts,
            save_dtype=save_dtype,
            device=self.device,
        )
        write_json(folder / "summary.json", facts)
        write_json(folder / "manifest.json", json_values(manifest))
        kept = {name: value[1] for name, value in facts.items() if isinstance(value, list)}
        report("prune", {"stage": "prune", **kept, "length": facts["length"]})

    def _records(self, entries: Sequence[Data], sets: list[list[Records]]) -> list[Records]:
        """Return the records of a start's own data, else those of the first stage or of `ridge`."""
        source = self.source
        if not entries and sets:
            return sets[0]
        if not entries and source.plan.ridge is not None:
            entries = source.plan.ridge.data
        return [
            read_records(find_data(entry.source, source.folder, self.data), entry.max_records)
            for entry in entries
        ]

    def _ridge(
        self, base: tuple[str, Recipe], teacher: str, sets: list[list[Records]]
    ) -> RidgeStart:
        """Return the start of a plan's projection, with its texts read."""
        plan = self.source.plan
        settings = plan.ridge or Ridge()
        model, recipe = base
        first = plan.stages[0].attention if plan.stages else None
        if first is not None:
            recipe = recipe.override({"backbone.attention": first})
        losses = [loss for stage in plan.stages for loss in stage.objective]
        data, records = settings.data or plan.stages[0].data, self._records(settings.data, sets)
        for entry, one in zip(data, records, strict=True):
            check_instructions("ridge", entry, one.kind, recipe)
        return RidgeStart(
            settings,
            (model, recipe),
            teacher,
            records,
            data,
            lm_head=any(loss.kind in LANGUAGE for loss in losses),
            save_dtype=None if plan.stages else saved_dtype(plan),
            device=self.device,
            precision=plan.precision,
        )
