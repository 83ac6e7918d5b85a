"""Which parameters a stage trains, and how the layers behave while it does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from embedlm.backbone.adapters import add_adapters
from embedlm.backbone.layout import current, layout
from embedlm.errors import InputError, UnsupportedError, require
from embedlm.schema.tuning import Adapter, Stage
from embedlm.training.language import LANGUAGE
from embedlm.training.named_adapters import adapters_of
from embedlm.training.objectives import EMBEDDING
from embedlm.training.qlora import in_four_bits
from embedlm.training.trainable import TextRequest, TrainableEmbedder

__all__ = ["attention_dropout", "check_learns", "recompute_contexts", "set_trainable"]


def set_trainable(model: TrainableEmbedder, stage: Stage) -> Any:
    """Enable the gradients of what a stage trains, and add its adapter.

    Returns:
        The model that PEFT wraps around the network, or None without such an adapter.

    Raises:
        InputError: nothing would be trained.
        UnsupportedError: the model already has switchable adapters, and the stage names none.
    """
    modules, names = model.modules(), adapters_of(stage)
    modules.requires_grad_(False)
    if names:
        _add_named_adapters(model, stage, names)
        return None
    if model.backbone.adapters is not None:
        raise UnsupportedError(
            f"stage {stage.name!r}: the model has switchable adapters "
            f"({', '.join(model.backbone.adapters.names)}); train one by name (data: adapter: "
            "NAME), or merge them into the model first"
        )
    tuner: Any = None
    others = [part for name, part in modules.items() if name not in ("backbone", "head")]
    if stage.train == "all":
        modules.requires_grad_(True)
    elif stage.train == "adapter":
        tuner = _with_adapter(model, stage.adapter or Adapter())
        for part in others:
            part.requires_grad_(True)
    elif stage.train == "heads":
        for part in others:
            part.requires_grad_(True)
    else:
        for name, parameter in modules.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    if not any(parameter.requires_grad for parameter in modules.parameters()):
        raise InputError(
            f"stage {stage.name!r}: train: {stage.train} trains nothing, because this model has no "
            "such parameters; take all or adapter"
        )
    return tuner


def check_learns(model: TrainableEmbedder, stage: Stage) -> None:
    """Refuse a stage none of whose trained parameters reaches what its losses read.

    A mean over an inner layer does not depend on the layers above it, for example.

    Raises:
        InputError: nothing that is trained has a gradient.
    """
    outputs: list[tuple[str, Tensor]] = []
    if any(loss.kind in EMBEDDING for loss in stage.objective):
        adapters: Sequence[str | None] = adapters_of(stage) or [None]
        for adapter in adapters:
            plan = model.plan_chunks([TextRequest(("text",), None, adapter=adapter)])
            outputs.append(("the vectors", plan.chunks[0]()))
    for loss in stage.objective:
        if loss.kind in LANGUAGE:
            logits = model.backbone.logits(model.backbone.run([[0]]))
            outputs.append((f"the predictions of {loss.kind}", logits))
    for name, output in outputs:
        if not output.requires_grad:
            layer = model.embedder.recipe.pooling.layer
            raise InputError(
                f"stage {stage.name!r} cannot learn: {name} depend on no parameter that `train: "
                f"{stage.train}` trains (the recipe pools layer {layer}); train: all, or choose "
                "adapter targets below that layer"
            )


def check_packages(stage: Stage) -> None:
    """Refuse a stage that trains an adapter where the packages for it are not installed.

    Raises:
        MissingExtraError: it names what to install.
    """
    if stage.train in ("adapter", "query_encoder"):
        require("peft", "train")
        if stage.adapter is not None and stage.adapter.kind == "qlora":
            require("bitsandbytes", "qlora")


def _with_adapter(model: TrainableEmbedder, settings: Adapter) -> Any:
    if settings.kind == "bitfit":
        raise InputError("adapter kind bitfit is `train: bias`")
    if settings.kind == "qlora":
        in_four_bits(model.backbone.network, model.backbone.device)
    peft = require("peft", "train")
    # peft still asks transformers by a name that is to go.
    quiet = warnings.catch_warnings(action="ignore", category=FutureWarning)
    with _targets_named(model, settings), quiet:
        tuner = peft.get_peft_model(model.backbone.network, _config(settings))
    for config in tuner.peft_config.values():
        if config.base_model_name_or_path == "None":  # when it saves, peft would ask the hub for it
            config.base_model_name_or_path = None
    model.rebuild()
    return tuner


def _add_named_adapters(model: TrainableEmbedder, stage: Stage, names: Sequence[str]) -> None:
    """Add a stage's switchable adapters, and enable their gradients only."""
    backbone, settings = model.backbone, stage.adapter or Adapter()
    with _targets_named(model, settings):
        adapters = add_adapters(backbone.network, backbone.adapters, names, _config(settings))
    model.rebuild(adapters=adapters)
    backbone.network.requires_grad_(False)
    for parameter in adapters.parameters(names, backbone.network):
        parameter.requires_grad_(True)


def _config(settings: Adapter) -> Any:
    targets = settings.targets
    return require("peft", "train").LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.kind == "dora",
        bias="none",
    )


@contextmanager
def _targets_named(model: TrainableEmbedder, settings: Adapter) -> Iterator[None]:
    """Turn PEFT's error about unknown adapter targets into one that lists the linear layers."""
    try:
        yield
    except ValueError as error:
        layers = model.backbone.network.named_modules()
        names = {name.rsplit(".", 1)[-1] for name, part in layers if isinstance(part, nn.Linear)}
        raise InputError(
            f"adapter targets {settings.targets!r} are not in this model: its linear layers are "
            f"called {', '.join(sorted(names))}"
        ) from error


@contextmanager
def attention_dropout(model: TrainableEmbedder, rate: float | None) -> Iterator[None]:
    """Train with this attention dropout, and restore the model's own afterwards."""
    if rate is None:
        yield
        return
    changed: list[tuple[Any, str, float]] = []
    for name, module in model.backbone.network.named_modules():
        before = getattr(module, "attention_dropout", None)
        if isinstance(before, float):
            changed.append((module, "attention_dropout", before))
            module.attention_dropout = rate
        elif isinstance(module, nn.Dropout) and "att" in name.lower():
            changed.append((module, "p", module.p))
            module.p = rate
    model.rebuild()
    try:
        yield
    finally:
        for module, key, before in changed:
            setattr(module, key, before)
        model.rebuild()


def recompute_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed layer: for its forward pass and for its recomputation.

    The second restores the layout of the first, because another pack may be current by then.
    """
    now = current()
    return nullcontext(), layout(now) if now is not None else nullcontext()
