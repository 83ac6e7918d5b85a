"""What a plan asks of its models is checked by their configs, before any is loaded.

A later stage that cannot be trained is so refused before the first one has trained for hours.
"""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from embedlm.backbone.adapter_files import split_adapters
from embedlm.backbone.config import load_config
from embedlm.backbone.outline import outline
from embedlm.errors import InputError, ModelError
from embedlm.schema.tuning import Stage
from embedlm.training.parameters import attention_rates, check_targets
from embedlm.training.plan import LocatedPlan, find_model
from embedlm.training.stage_checks import named_models
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
                    load_config(base)  # of the hub
            except ModelError as error:
                raise ModelError(f"stage {stage.name!r}: {option}: {error}") from error
    model = find_model(plan.model, source.folder, data)
    network = outline(model) if plan.stages else None
    for stage in plan.stages if network is not None else ():
        _check_stage(stage, network)
    if any(loss.matryoshka for stage in plan.stages for loss in stage.objective):
        _tell_widths(source, model, data)


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


def _tell_widths(source: LocatedPlan, model: str, data: str | Path | None) -> None:
    """Warn of smaller widths that are not smaller than the model's vectors."""
    whole = dense_width(model, source.recipe(data))
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
