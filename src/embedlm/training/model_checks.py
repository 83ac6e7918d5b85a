"""What a plan asks of its models is checked by their configs, before any is loaded.

A later stage that cannot be trained is so refused before the first one has trained for hours.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from embedlm.backbone.adapter_files import split_adapters
from embedlm.backbone.outline import outline
from embedlm.errors import InputError, ModelError
from embedlm.persistence import network_config, network_place
from embedlm.readout.heads import make_heads
from embedlm.readout.parts import needed_layers
from embedlm.schema.recipe import Recipe
from embedlm.schema.tuning import Stage
from embedlm.training.bottleneck import BOTTLENECK
from embedlm.training.language import LANGUAGE
from embedlm.training.parameters import attention_rates, check_targets
from embedlm.training.plan import LocatedPlan, find_model
from embedlm.training.stage_checks import named_models
from embedlm.training.step import trained_heads
from embedlm.training.widths import dense_width

__all__ = ["check_models"]

log = logging.getLogger(__name__)


def check_models(source: LocatedPlan, data: str | Path | None) -> None:
    """Refuse a stage whose teachers are not there, or that would train what its model has not.

    Args:
        source: the plan, and where it lies.
        data: the data folder, in which models are looked for, too.

    Raises:
        InputError: adapter targets, biases or a dropout that the model has not.
        ModelError: a teacher or re-ranker is not there.
    """
    plan = source.plan
    for stage in plan.stages:
        for option, name in named_models(stage):
            base = split_adapters(find_model(name, source.folder, data))[0]
            try:
                if not Path(base).exists():
                    network_config(base)  # of the hub
            except ModelError as error:
                raise ModelError(f"stage {stage.name!r}: {option}: {error}") from error
    model = find_model(plan.model, source.folder, data)
    network = outline(network_place(model)) if plan.stages else None
    recipe = source.recipe(data)
    for number, stage in enumerate(plan.stages):
        _check_parts(stage, recipe)
        if network is None:
            continue
        _check_stage(stage, network)
        if _reads_head(plan.stages[number:], recipe):
            _check_tied(stage, network)
    if any(loss.matryoshka for stage in plan.stages for loss in stage.objective):
        _tell_widths(source, model, recipe)


def _check_stage(stage: Stage, network: nn.Module) -> None:
    where = f"stage {stage.name!r}"
    if stage.train in ("adapter", "query_encoder") and stage.adapter is not None:
        check_targets(network, stage.adapter, where)
    names = (name for name, _ in network.named_parameters())
    if stage.train == "bias" and not any(name.endswith("bias") for name in names):
        raise InputError(
            f"{where}: train: bias trains nothing, because this model has no biases; take all or "
            "adapter"
        )
    if stage.dropout and not attention_rates(network):
        raise InputError(
            f"{where}: dropout has no effect: the model's attention has none; leave it out"
        )


def _check_parts(stage: Stage, recipe: Recipe) -> None:
    """Refuse to train the layers beside the network where a recipe reads none."""
    bottleneck = any(loss.kind in BOTTLENECK for loss in stage.objective)
    if stage.train == "heads" and not needed_layers(recipe) and not bottleneck:
        raise InputError(
            f"stage {stage.name!r}: train: heads trains nothing, because the recipe reads no "
            "projection, latent attention or layer of token vectors; take all or adapter"
        )


def _reads_head(stages: Sequence[Stage], recipe: Recipe) -> bool:
    """Tell whether a stage or the trained model reads the language-model head."""
    losses = [loss for stage in stages for loss in stage.objective]
    heads = trained_heads(recipe.heads, losses)
    language = any(loss.kind in LANGUAGE for loss in losses)
    return language or any(head.reads_lm_head for head in make_heads((*heads, *recipe.heads)))


def _check_tied(stage: Stage, network: Any) -> None:
    """Refuse an adapter of the embeddings that would change the language-model head when merged."""
    targets = stage.adapter.targets if stage.adapter is not None else "all-linear"
    table = network.get_input_embeddings()
    tied = getattr(network.config.get_text_config(), "tie_word_embeddings", False)
    if isinstance(targets, str) or not tied or table is None:
        return
    own = next(name for name, layer in network.named_modules() if layer is table)
    named = [target for target in targets if own == target or own.endswith(f".{target}")]
    if named and stage.train == "adapter":
        raise InputError(
            f"stage {stage.name!r}: the adapter target {named[0]} is the language-model head's "
            "table, too: merged, the adapter would change the head, which is read without it; "
            "leave it out of adapter.targets, or take train: all"
        )


def _tell_widths(source: LocatedPlan, model: str, recipe: Recipe) -> None:
    """Warn of smaller widths that are not smaller than the model's vectors."""
    whole = dense_width(model, recipe)
    for stage in source.plan.stages:
        for loss in stage.objective:
            wide = [width for width in loss.matryoshka if whole is not None and width > whole]
            if wide:
                log.warning(
                    "stage %r: matryoshka %s of %s changes nothing: the model's vectors are %d "
                    "numbers wide",
                    stage.name,
                    ", ".join(map(str, wide)),
                    loss.kind,
                    whole,
                )
