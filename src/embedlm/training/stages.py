"""A plan's stages: each starts from the model that the one before has written."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from embedlm.backbone.adapters import apply_adapters
from embedlm.backbone.builtin import BUILTIN
from embedlm.data import Records
from embedlm.embedder import Embedder
from embedlm.errors import InputError
from embedlm.jobs.interrupts import keeping
from embedlm.jobs.lock import locked
from embedlm.loader import load, load_to_train
from embedlm.readout.heads import make_heads
from embedlm.rerank import Reranker
from embedlm.schema.plan import Plan
from embedlm.schema.recipe import Recipe
from embedlm.schema.tuning import Stage
from embedlm.training.bottleneck import BOTTLENECK, Bottleneck
from embedlm.training.checkpoint import Checkpoints, trained_parameters
from embedlm.training.dev import DevSet
from embedlm.training.devices import process_count, process_rank, processes, wait_for_all
from embedlm.training.finished import is_finished, manifest_of, saved_dtype, write_finished
from embedlm.training.fsdp import put_weights, shard, whole_weights
from embedlm.training.inputs import batches_of, read_inputs
from embedlm.training.language import LANGUAGE
from embedlm.training.loop import Intervals, run_steps, write_log
from embedlm.training.model_checks import check_models
from embedlm.training.named_adapters import changes_of
from embedlm.training.outputs import LOCK, check_target
from embedlm.training.parameters import (
    attention_dropout,
    check_learns,
    recompute_contexts,
    set_trainable,
)
from embedlm.training.plan import LocatedPlan, find_model, load_plan, shown_name, tiny
from embedlm.training.stage_checks import check_teacher
from embedlm.training.starting import Start, check_start
from embedlm.training.step import Stepper, length_limit, trained_heads
from embedlm.training.teachers import EmbeddingTeacher, RerankingTeacher, TeacherPanel
from embedlm.training.trackers import EventHandler, tracked
from embedlm.training.trainable import TrainableEmbedder

__all__ = ["train"]

log = logging.getLogger(__name__)

PACK = 4096
"""Tokens of a chunk when the stage sets no chunk_tokens."""


def train(
    plan: str | Path | Mapping[str, Any] | Plan,
    output: str | Path,
    *,
    model: str | None = None,
    data: str | Path | None = None,
    scale: str | None = None,
    device: Any = None,
    restart: bool = False,
    on_event: EventHandler | None = None,
) -> Embedder:
    """Train a model by a plan; an interrupted run resumes from its last checkpoint.

    Args:
        plan: a .yaml file, its fields, or the name of a recipe with a tuning part.
        output: folder for the stages, their checkpoints and logs, and the model (`output/model`).
        model: trains this model instead of the plan's.
        data: folder that holds the plan's data sets; None takes $EMBEDLM_DATA.
        scale: "tiny" shortens the same stages so that two CPU cores can train them, and trains the
            built-in base model unless `model` names another.
        device: None chooses CUDA, MPS or CPU.
        restart: discard what the output folder holds and start again.
        on_event: receives the kind of each event ("stage", "resume", "step" or "dev") and its
            values.

    Returns:
        The trained model, as `embedlm.load(output/model)` opens it.

    Raises:
        RecipeError: the plan is not valid.
        InputError: data are missing, or an objective cannot learn from them.
        JobError: training diverged, the folder holds another plan's checkpoints, or another process
            trains in it.
    """
    located, target = _located(plan, model, scale, device), Path(output)
    check_target(target, located, data)
    ridge = check_start(located, data)
    check_teacher(located.plan, starts=ridge is not None)
    sets, dev = read_inputs(located, data)
    check_models(located, data)
    with (
        processes(device),
        _only_run(target),
        tracked(located.plan, target, on_event) as report,
        keeping(lambda: _any_work(target)),
    ):
        _Run(located, data, device, report, dev, ridge).run(sets, target, restart=restart)
    return load(str(target / "model"), device=device)


def _located(plan: Any, model: str | None, scale: str | None, device: Any) -> LocatedPlan:
    """Return a plan with the model and the scale that the caller chose."""
    loaded = load_plan(plan)
    if scale not in (None, "tiny"):
        raise InputError(f"scale {scale!r} is not known; allowed: tiny")
    chosen = tiny(loaded.plan, device) if scale == "tiny" else loaded.plan
    if model is not None:
        here = Path(model).exists() and model not in BUILTIN
        own = str(Path(model).absolute()) if here else model  # not one beside the plan
        chosen = chosen.model_copy(update={"model": own})
    return LocatedPlan(chosen, loaded.folder)


def _any_work(target: Path) -> bool:
    """Tell whether a run's folder holds a checkpoint or the model of a stage."""
    kept = (*target.glob("stage-*/checkpoints/step-*"), *target.glob("stage-*/model/config.json"))
    return bool(kept)


@contextmanager
def _only_run(target: Path) -> Iterator[None]:
    """Hold the lock of the output folder, in the first process, while a run is under way.

    Raises:
        JobError: another run trains in the folder.
    """
    target.mkdir(parents=True, exist_ok=True)
    with locked(target / LOCK) if process_rank() == 0 else nullcontext():
        yield


@dataclass(frozen=True, slots=True)
class _Run:
    """What all stages of a run share."""

    source: LocatedPlan
    data: str | Path | None
    device: Any
    on_event: EventHandler
    dev: DevSet | None
    ridge: str | None
    """The teacher of a projection that starts by ridge regression."""

    def run(self, sets: list[list[Records]], target: Path, *, restart: bool) -> None:
        """Train the stages that are not finished; copy the last one's model to `target/model`."""
        plan = self.source.plan
        if process_rank() == 0 and restart:
            for folder in (*target.glob("stage-*"), target / "model"):
                shutil.rmtree(folder, ignore_errors=True)
        wait_for_all()
        here, recipe = (
            find_model(plan.model, self.source.folder, self.data),
            self.source.recipe(self.data),
        )
        changes = changes_of(plan.stages)
        recipe = recipe.override(changes) if changes else recipe
        started = Start(self.source, self.ridge, self.data, self.device).run(
            (here, recipe), sets, target, self.on_event
        )
        if self.ridge is not None:
            recipe = _without_adapters(recipe)
        here = started
        for number, (stage, records) in enumerate(zip(plan.stages, sets, strict=True)):
            folder = target / f"stage-{number + 1}-{stage.name}"
            shards = process_count() if plan.sharding == "full" else 1
            manifest = manifest_of(
                plan, number, (here, recipe), records, self.dev, shards, self._find
            )
            if not is_finished(folder, manifest):
                self.stage(number, records, (here, recipe), folder, manifest)
            elif process_rank() == 0:
                self.on_event("resume", {"stage": stage.name, "finished": True})
            here, recipe = str(folder / "model"), _without_adapters(recipe)
        if process_rank() == 0:
            shutil.rmtree(target / "model", ignore_errors=True)
            shutil.copytree(here, target / "model")
        wait_for_all()

    def stage(
        self,
        number: int,
        sets: list[Records],
        base: tuple[str, Recipe],
        folder: Path,
        manifest: dict[str, Any],
    ) -> None:
        """Train one stage, starting from the model and recipe in `base`, and write its model."""
        plan = self.source.plan
        stage, later = plan.stages[number], plan.stages[number + 1 :]
        folder.mkdir(parents=True, exist_ok=True)
        if process_rank() == 0:
            self.on_event("stage", {"stage": stage.name, "model": shown_name(base[0])})
        torch.manual_seed(plan.seed)  # an adapter's first weights are random
        model = _load_trainable(stage, *base, self.device, later=later)
        tuner = set_trainable(model, stage)
        check_learns(model, stage)
        if plan.sharding == "full" and process_count() > 1:
            shard(model)
        elif plan.sharding == "full":
            log.warning("sharding: full changes nothing: there is one process; run torchrun")
        batches = batches_of(stage, sets, plan)
        stepper = self._stepper(stage, model, batches.kind)

        def report(kind: str, values: dict[str, Any]) -> None:
            if process_rank() == 0:
                write_log(folder / "log.jsonl", kind, values)
                self.on_event(kind, {"stage": stage.name, **values})

        with attention_dropout(model, stage.dropout):
            checkpoints = Checkpoints(folder / "checkpoints", manifest)
            every = _every(plan, stage)
            progress = run_steps(stepper, batches, checkpoints, every, self.dev, report)
        self._write(model, tuner, number, base, folder)
        if process_rank() == 0:
            write_finished(folder, manifest, progress)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        wait_for_all()

    def _write(
        self,
        model: TrainableEmbedder,
        tuner: Any,
        number: int,
        before: tuple[str, Recipe],
        folder: Path,
    ) -> None:
        """Write a stage's adapter and model from the first process, after gathering shards."""
        stages = self.source.plan.stages
        stage, later = stages[number], stages[number + 1 :]
        if model.backbone.sharded:
            weights = whole_weights(trained_parameters(model.modules()))
            if process_rank() == 0:
                model = _load_trainable(stage, *before, "cpu", later=later)
                tuner = set_trainable(model, stage)
                put_weights(trained_parameters(model.modules()), weights)
        if process_rank() != 0:
            return
        if tuner is not None:
            with warnings.catch_warnings(action="ignore"):  # of tables that it writes too
                tuner.save_pretrained(str(folder / "adapter"))
        if stage.adapter is not None and stage.adapter.kind == "qlora":
            # The adapter that was trained on 4 bits is merged into the full weights.
            whole = _load_trainable(stage, *before, self.device).backbone.network
            apply_adapters(whole, [folder / "adapter"], merge=True)
            model.rebuild(network=whole)
        elif tuner is not None:
            with warnings.catch_warnings(action="ignore"):  # of tied tables, see model_checks.py
                tuner.merge_and_unload()
            model.rebuild()
        last = number == len(stages) - 1
        save_dtype = saved_dtype(self.source.plan) if last else None
        model.embedder.save_pretrained(folder / "model", save_dtype=save_dtype)

    def _stepper(self, stage: Stage, model: TrainableEmbedder, kind: str) -> Stepper:
        """Return the stepper of a stage, with the teachers that its losses name."""
        plan, options = self.source.plan, {"device": self.device, "dtype": "auto"}
        stepper = Stepper(model, stage, kind, plan.seed, plan.precision)
        of_teacher = {**options, "dtype": plan.precision}
        if (teacher := self._named(stage, "teacher")) is not None:
            stepper.guide = EmbeddingTeacher(load(teacher, **of_teacher))
        named = {str(t): None for o in stage.objective for t in o.options.get("teachers", ())}
        if named:
            stepper.scorer = TeacherPanel(
                [EmbeddingTeacher(load(self._find(name), **of_teacher)) for name in named]
            )
        if (reranker := self._named(stage, "reranker")) is not None:
            stepper.scorer = RerankingTeacher(Reranker(reranker, **options))
        return stepper

    def _find(self, name: str) -> str:
        """Return the folder or hub id of a model that the plan names."""
        return find_model(name, self.source.folder, self.data)

    def _named(self, stage: Stage, option: str) -> str | None:
        """Return the model that a stage's losses name as a teacher or re-ranker."""
        named = [loss.options[option] for loss in stage.objective if option in loss.options]
        if not named:
            return None
        if len(set(named)) > 1:
            raise InputError(
                f"stage {stage.name!r} names several models as {option}: {', '.join(named)}; give "
                "one"
            )
        return self._find(str(named[0]))


def _without_adapters(recipe: Recipe) -> Recipe:
    """Return the recipe of a model that was written with the recipe's adapters in it."""
    return recipe.override({"backbone.adapters": []}) if recipe.backbone.adapters else recipe


def _load_trainable(
    stage: Stage, here: str, recipe: Recipe, device: Any, *, later: Sequence[Stage] = ()
) -> TrainableEmbedder:
    """Load the model of a stage.

    Its language-model head is loaded if this stage or a later one needs it.

    Raises:
        InputError: a language-modelling objective, and the model has no language-model head.
    """
    own = recipe
    if stage.attention is not None:
        own = recipe.override({"backbone.attention": stage.attention})
    heads = trained_heads(own.heads, stage.objective)
    language = any(_is_language(one) for one in (stage, *later))
    lm_head = language or any(head.reads_lm_head for head in make_heads(heads))
    embedder = load_to_train(here, own, device=device, lm_head=lm_head)
    if _is_language(stage) and embedder.backbone.head is None:
        kinds = ", ".join(loss.kind for loss in stage.objective if loss.kind in LANGUAGE)
        raise InputError(
            f"stage {stage.name!r}: objective {kinds} needs a language-model head, and "
            f"{shown_name(here)} has none; choose a model with one, or another objective"
        )
    model = TrainableEmbedder(embedder, heads, stage.batching.chunk_tokens or PACK)
    model.denoise = own.pooling.denoise if stage.denoise is None else stage.denoise
    if any(loss.kind in BOTTLENECK for loss in stage.objective):
        heads_of_layer = int(embedder.backbone.text_config.num_attention_heads)
        decoder = Bottleneck(embedder.backbone.dim, heads_of_layer, length_limit(stage))
        model.extra["decoder"] = decoder.to(embedder.backbone.device)
    if stage.gradient_checkpointing:
        network: Any = model.backbone.network
        network.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": recompute_contexts}
        )
        model.rebuild()
    return model


def _is_language(stage: Stage) -> bool:
    return any(loss.kind in LANGUAGE for loss in stage.objective)


def _every(plan: Plan, stage: Stage) -> Intervals:
    keep: Literal["best", "last"] = stage.keep or ("last" if _is_language(stage) else "best")
    dev = plan.dev
    return Intervals(
        log=plan.log_every,
        evaluate=None if dev is None else dev.every,
        checkpoint=plan.checkpoint_every,
        keep=keep,
        patience=None if dev is None else dev.patience,
    )
